"""Runs text encoders of which nothing trains before the last block's MLP.

What is before never changes, so it is computed once; and since the head reads the
first token alone, a text is two vectors: what that MLP reads of this token, and
what it puts out.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import pathlib
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from fedjax_tune import config
from fedjax_tune.costs import cost
from fedjax_tune.data import corpus, public, shares, tasks
from fedjax_tune.engine import (
  evaluate,
  local_optimizer,
  plan,
  server_optimizer,
)
from fedjax_tune.engine.algorithm import Algorithm
from fedjax_tune.engine.round import Engine
from fedjax_tune.methods.facts import Facts
from fedjax_tune.methods.heterotune import heterotune
from fedjax_tune.models import (
  block,
  federation,
  foundation,
  peft,
  pretrained,
  text,
)
from fedjax_tune.training import build
from fedjax_tune.typing import Tree

# Texts at a time.
_BATCH = 64


class TailBlock(block.PostNormBlock):
  """What of a block stands behind its MLP."""

  def __call__(
    self,
    x_BxTxD: jax.Array,
    queries: int,
    keys: block.Keys,
    real_BxT: jax.Array | None = None,
  ) -> jax.Array:
    """Returns the token behind, [B, 2, D]; what is second, nothing reads."""
    del queries, keys, real_BxT
    x, branch = x_BxTxD[:, :1], x_BxTxD[:, 1:]
    token = self.norm2(x + block.adapted(self, 'mlp', x, branch))
    return jnp.concatenate([token, branch], 1)


class Tail(text.TextEncoder):
  """A text encoder from there on; inputs are float32 [B, 2, D]."""

  def start(self, inputs: Any, key: jax.Array | None = None) -> Any:
    """Returns the inputs, of which the first is a token."""
    del key
    return inputs, jnp.arange(2) < jnp.ones((len(inputs), 1))


@dataclasses.dataclass(frozen=True)
class Frozen:
  """What is computed once.

  Attributes:
    weights: The models.
    train: Training texts as the tail of each model, in order, reads them.
    test: Test texts likewise.
  """

  weights: Mapping[str, pretrained.Pretrained]
  train: corpus.Corpus
  test: corpus.Corpus


def freeze(
  experiment: config.Experiment,
  models: Sequence[str],
  out: pathlib.Path,
  most: int,
) -> Frozen:
  """Returns what tails read, from `out` if it is there.

  Args:
    experiment: Names the data.
    models: Names of the weights, all with one tokenizer.
    out: Where it is kept.
    most: How many training texts, evenly spread.
  """
  folder = build.data_dir(experiment.data)
  weights = {n: pretrained.load_pretrained(n, folder, 0) for n in models}
  first = weights[models[0]]
  made = []
  splits = corpus.load(experiment.data, first.tokenizer, first.pad)
  for split, name in zip(splits, ('train', 'test'), strict=True):
    count = most if name == 'train' else len(split)
    at, views = public.spread(len(split), count), []
    for model, loaded in weights.items():
      path = out / f'{model}_{name}.npy'
      if not path.exists():
        np.save(path, before(experiment, loaded, split, at))
      seen = {'inputs': np.load(path), 'lengths': None}
      kept = {'labels': split.labels[at], 'domains': split.domains[at]}
      views.append(dataclasses.replace(split, **seen, **kept))
    made.append(views[0].seen_as(views[1:]))
  return Frozen(weights, *made)


def before(
  experiment: config.Experiment,
  weights: pretrained.Pretrained,
  split: corpus.Corpus,
  at: np.ndarray,
) -> np.ndarray:
  """Computes what the last MLP reads and puts out of some texts, [N, 2, D]."""
  e = dataclasses.replace(experiment, model=config.Model(tune='head'))
  found = peft.build(e, weights, split.task)

  @jax.jit
  def run(base: Tree, theta: Tree, inputs: Any) -> jax.Array:
    model: Any = found.merge(base, theta)
    _, real = model.start(inputs)
    tokens = model.tokens(inputs, np.arange(found.depth - 1))
    structure, stacks = nnx.split(model.blocks)
    last = nnx.merge(structure, jax.tree.map(lambda p: p[-1], stacks))
    keys = block.Keys(None, 0)
    x = last.norm1(tokens[:, :1] + last.attn(tokens, 1, keys, real))
    return jnp.concatenate([x, last.mlp(x, keys)], 1)

  parts = []
  for begin in range(0, len(at), _BATCH):
    rows = np.resize(at[begin : begin + _BATCH], _BATCH)
    parts.append(np.asarray(run(found.base, found.theta, split.read(rows))))
  return np.concatenate(parts)[: len(at)]


def tail(
  experiment: config.Experiment,
  weights: pretrained.Pretrained,
  task: tasks.Task,
  projections: str = 'free',
  code: int = 0,
) -> foundation.Foundation:
  """Builds what of a model stands behind its last MLP, and the rest unused."""
  params: Any = weights.params
  embed = {**params['embed'], 'word': params['embed']['word'][:1]}
  last = jax.tree.map(lambda x: x[-1:], params['blocks'])
  short: Any = dataclasses.replace(weights.config, depth=1, vocab=1)
  cut = dataclasses.replace(
    weights, config=short, params={**params, 'embed': embed, 'blocks': last}
  )
  found = peft.build(experiment, cut, task, projections, code)
  model: Any = found.merge(found.base, found.theta)
  model.__class__, model.blocks.__class__ = Tail, TailBlock
  return foundation.split(model, 1)


@dataclasses.dataclass(frozen=True)
class Run:
  """HeteroTune on tails, ready to run; one for all seeds of a design.

  Attributes:
    experiment: Its configuration, of the first seed.
    frozen: What tails read.
    engine: Its rounds, compiled.
    score: (base, theta) -> how good each tier's model is.
  """

  experiment: config.Experiment
  frozen: Frozen
  engine: Engine
  score: evaluate.Evaluate

  @classmethod
  def build(
    cls,
    experiment: config.Experiment,
    frozen: Frozen,
    parts: Sequence[np.ndarray],
    shown: np.ndarray,
  ) -> 'Run':
    """Builds a run.

    Args:
      experiment: With one site, and not every block adapted.
      frozen: What its tails read.
      parts: For each client the positions of its examples.
      shown: Positions of the public ones.
    """
    e, algorithm = experiment, make(experiment, frozen, shown)
    engine = Engine(
      algorithm,
      local_optimizer.build(e.local),
      server_optimizer.build(e.server),
    )
    planner = make_planner(e, algorithm, frozen, parts)
    batches = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype),
      planner.plan(0).works[0].own.batches,
    )
    engine.compile(planner.widths, lambda _: batches, planner.info_shapes)
    tests = {n: frozen.test.view(i) for i, n in enumerate(frozen.weights)}
    score = evaluate.build_evaluate(
      algorithm.model, algorithm.evaluation, tests, batch_size=len(frozen.test)
    )
    return cls(e, frozen, engine, score)

  def accuracies(self, theta: Tree) -> dict[str, float]:
    """Returns how good each tier's model is on the test texts."""
    found = self.score(self.engine.algorithm.model.base, theta)
    return {name: float(np.mean(of['accuracy'])) for name, of in found.items()}

  def uplink(self, planned: plan.RoundPlan) -> int:
    """Returns the bytes that all clients of a round send."""
    algorithm = self.engine.algorithm
    model, cohort = algorithm.model, [m.sig for m in planned.members]
    held = functools.partial(cost.held_shapes, model.theta, model.axes)
    return sum(algorithm.traffic(s, cohort, held).uplink for s in cohort)


def make(
  experiment: config.Experiment, frozen: Frozen, shown: np.ndarray
) -> Algorithm:
  """Builds HeteroTune on tails."""
  e, task, names = experiment, frozen.train.task, list(frozen.weights)
  code = 0 if e.tiers.head == 'own' else e.tiers.head_rank

  def one(name: str, adapter: Any) -> foundation.Foundation:
    own = dataclasses.replace(e, fedadapter=adapter)
    weights = frozen.weights[name]
    return tail(own, weights, task, e.fedadapter.projections, code)

  def public_inputs(name: str) -> public.Shown:
    return public.Shown(frozen.train.view(names.index(name)).read(shown))

  sizes = {'layer': 1} | {federation.tier_axis(name): 1 for name in names}
  built = {name: functools.partial(one, name) for name in names}
  budgets = (1,) * e.clients.count
  return heterotune.build(
    Facts(e, sizes, budgets, task, None, built, public=public_inputs)
  )


def make_planner(
  experiment: config.Experiment,
  algorithm: Algorithm,
  frozen: Frozen,
  parts: Sequence[np.ndarray],
) -> plan.Planner:
  """Plans rounds of clients with these examples."""
  readers = {name: i for i, name in enumerate(frozen.weights)}
  held = shares.Shares.of([np.sort(part) for part in parts])
  nowhere = np.full(len(parts), -1)
  return plan.Planner(
    experiment, algorithm, frozen.train, held, nowhere, readers
  )
