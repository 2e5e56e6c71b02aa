"""Tiny models, data and runs that the tests share.

`Stack` is the smallest model that fulfils the engine's contract; it compiles
in a third of a ViT's time, and the engine knows neither.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax_tune import config
from fedjax_tune.config.field_rules import RULES
from fedjax_tune.data import corpus, shares, tasks
from fedjax_tune.data.tasks import Task
from fedjax_tune.engine import (
  client,
  local_optimizer,
  plan,
  server,
  server_optimizer,
)
from fedjax_tune.engine import round as round_lib
from fedjax_tune.engine.algorithm import Algorithm, Context
from fedjax_tune.engine.slabs import Signature
from fedjax_tune.methods import METHODS, proximal
from fedjax_tune.methods.facts import Facts
from fedjax_tune.models import (
  backbone,
  bottleneck,
  federation,
  foundation,
  linear,
  sizes,
  text,
  vit,
)
from fedjax_tune.models.lora import Lora
from fedjax_tune.models.sizes import Config
from fedjax_tune.typing import Axes, Tokens, Tree

DEPTH = 4
CLASSES = 3
BUDGETS = (4, 3, 2, 2)
# Axes that a stack does not have.
_HEADS = ('heads', 'qk_dim', 'v_dim', 'ffn')
# Pixels of an image's side.
STACK_SIZE, VIT_SIZE = 4, 16

_VARIANTS = {
  'inclusivefl': ('published', 'fedra_port'),
  'depthfl': ('published', 'fedra_port'),
  # Each pair of axes, and all together.
  'composed': (
    'fedra+heterofl',
    'fedra+raffm',
    'prefix+fedrolex',
    'fedra+random',
    'fedra+fedit',
    'prefix+rbla',
    'raffm+hetlora',
    'heterofl+fedit',
    'fedra+branches',
    'fedra+raffm+hetlora',
    'prefix+heterofl+rbla',
  ),
}
# Every method of the registry, in every variant: 'fedra', 'depthfl:published'.
CASES = [
  ':'.join(filter(None, (name, variant)))
  for name in METHODS
  for variant in _VARIANTS.get(name, ('',))
]
# The same, where a test compiles much: second variants are slow ones, and so are
# compositions of parts which these three have too.
_WIDEST = ('fedra+branches', 'fedra+raffm', 'prefix+heterofl+rbla')
LONG_CASES = [
  pytest.param(case, marks=pytest.mark.slow)
  if case.endswith(':fedra_port')
  or (case.startswith('composed:') and not case.endswith(_WIDEST))
  else case
  for case in CASES
]


def slow(*cases: Any) -> list[Any]:
  """Returns parameters with which a test is a slow one."""
  return [pytest.param(case, marks=pytest.mark.slow) for case in cases]


class _Mlp(nnx.Module):
  """Two maps of every block, as large as each other."""

  def __init__(self, width, layer, rngs):
    make = lambda ins, outs: linear.Linear(
      (ins,), (outs,), stack=layer, kind=nnx.Param, rngs=rngs
    )
    self.fc1: Any = make(width, ('ffn', 5))
    self.fc2: Any = make(('ffn', 5), width)

  def __call__(self, x):
    """Maps [..., D] to [..., D]."""
    return self.fc2(jnp.tanh(self.fc1(x)))


class Stack(nnx.Module):
  """Residual blocks x + tanh(linear(x)) with LoRA and dropout.

  With `mlp` they have two maps more that train, which can be factored.
  """

  def __init__(
    self,
    lora: Lora | None,
    fedadapter: bottleneck.Bottleneck | None = None,
    depth: int = DEPTH,
    *,
    mlp: bool = False,
  ) -> None:
    rngs, width = nnx.Rngs(0), ('embed', 6)
    patch = (('patch', STACK_SIZE**2 * 3),)
    layer, classes = (('layer', depth),), (('class', CLASSES),)
    self.embed = linear.Linear(patch, (width,), adapter=lora, rngs=rngs)
    self.blocks: Any = linear.Linear(
      (width,), (width,), stack=layer, adapter=lora, rngs=rngs
    )
    if fedadapter:
      shape = vit_config(depth=depth, embed=6, heads=1)
      self.blocks.extra = bottleneck.FedAdapter(shape, fedadapter, rngs)
    if mlp:
      self.blocks.mlp = _Mlp(width, layer, rngs)
    self.head = linear.Linear((width,), classes, kind=nnx.Param, rngs=rngs)

  def class_tokens(self, images, layers_N, *, key=None):
    """Returns [N, B, D] after each selected block."""
    drop = lambda i: None if key is None else jax.random.fold_in(key, i)
    graph, local, base = nnx.split(self.blocks, nnx.Param, ...)
    pixels = images.reshape(len(images), -1).astype(jnp.float32)

    def body(x, inputs):
      layer, held = inputs
      frozen = jax.tree.map(lambda p: p[layer], base)
      block = nnx.merge(graph, held, frozen)
      branch = jnp.tanh(block(x, drop(layer)))
      if hasattr(block, 'extra'):
        branch = block.extra(x, branch)
      if hasattr(block, 'mlp'):
        branch = branch + block.mlp(x)
      x = x + branch
      return x, x

    start = self.embed(pixels / 255 - 0.5, drop(DEPTH))
    return jax.lax.scan(body, start, (layers_N, local))[1]

  def __call__(self, images, layers_N, *, key=None):
    """Returns logits [B, K]."""
    return self.head(self.class_tokens(images, layers_N, key=key)[-1])


def pretrained_shapes(shape: Config) -> Tree:
  """Returns the shapes of the pretrained parameters, as the model has them."""
  found = backbone.pretrained_variables(shape)
  return foundation.nest({p: v.get_value() for p, v in found.items()})


def noise(tree: Tree, seed: int, scale: float = 0.2) -> Tree:
  """Adds normal noise, so that no bias, adapter or position is trivial."""
  leaves, treedef = jax.tree.flatten(tree)
  rng = np.random.default_rng(seed)

  # In NumPy: on the device each shape would be a program of its own.
  def add(x):
    normal = rng.normal(size=x.shape).astype(np.float32)
    return jnp.asarray(np.asarray(x) + np.float32(scale) * normal)

  return jax.tree.unflatten(treedef, [add(x) for x in leaves])


def _split(model: nnx.Module) -> foundation.Foundation:
  found = foundation.split(model, DEPTH)
  return dataclasses.replace(
    found, theta=noise(found.theta, 1), base=noise(found.base, 2)
  )


def _draw(build_model: Callable[[], nnx.Module]) -> foundation.Foundation:
  """Draws all parameters here: the model's own draw compiles for seconds."""
  found = foundation.split(nnx.eval_shape(build_model), DEPTH)

  def start(path, shape):
    return np.full(shape.shape, path[-1].key == 'scale', np.float32)

  draw = lambda tree, seed: noise(jax.tree.map_with_path(start, tree), seed)
  return dataclasses.replace(
    found, theta=draw(found.theta, 1), base=draw(found.base, 2)
  )


@functools.cache
def federated_stacks(
  *sizes: tuple[int, bottleneck.Bottleneck], shared: bool = True
) -> federation.Federation:
  """Returns noisy stacks with FedAdapters: tiers 'large', 'small', 'last'.

  Args:
    *sizes: Depth and bottleneck of each.
    shared: Whether they share their cores.
  """
  names = ('large', 'small', 'last')[: len(sizes)]
  stacks = {}
  for i, (name, (depth, sides)) in enumerate(zip(names, sizes, strict=True)):
    found = foundation.split(Stack(None, sides, depth), depth)
    stacks[name] = dataclasses.replace(
      found, theta=noise(found.theta, i), base=noise(found.base, 10 + i)
    )
  return federation.federate(stacks, bottleneck.CORES if shared else ())


@functools.cache
def stack(
  dropout: float = 0.0, rank: int = 2, *, mlp: bool = False
) -> foundation.Foundation:
  """Returns a noisy stack."""
  lora = Lora(rank, scale=2.0, dropout=dropout)
  return _split(Stack(lora, mlp=mlp))


TARGETS = ('attn.proj', 'mlp.fc2', 'embed.patch')


def vit_config(**changes: Any) -> vit.ViTConfig:
  """Returns the sizes of a tiny ViT."""
  shape = vit.ViTConfig(
    DEPTH, 16, 2, 32, patch=8, image_size=VIT_SIZE, num_classes=CLASSES
  )
  return dataclasses.replace(shape, **changes)


@functools.cache
def vit_foundation(
  dropout: float = 0.0,
  *,
  targets: tuple[str, ...] = TARGETS,
  remat: bool = False,
  unroll: bool = False,
  **changes: Any,
) -> foundation.Foundation:
  """Returns a noisy ViT."""
  lora = Lora(rank=2, scale=2.0, dropout=dropout)
  adapters = dict.fromkeys(targets, lora)
  shape = vit_config(**changes)
  ways = {'remat': remat, 'unroll': unroll}
  make = lambda: vit.ViT(shape, adapters, **ways, rngs=nnx.Rngs(0))
  return _draw(make) if shape.full else _split(make())


def text_config(**changes: Any) -> text.TextConfig:
  """Returns the sizes of a tiny BERT."""
  shape = text.TextConfig(
    DEPTH, 16, 2, 32, vocab=20, positions=12, num_classes=CLASSES
  )
  return dataclasses.replace(shape, **changes)


@functools.cache
def text_foundation(
  *, targets: tuple[str, ...] = (), **changes: Any
) -> foundation.Foundation:
  """Returns a noisy BERT."""
  shape = text_config(**changes)
  lora = Lora(rank=2, scale=2.0, dropout=shape.dropout)
  adapters = dict.fromkeys(targets, lora)
  return _draw(lambda: text.TextEncoder(shape, adapters, rngs=nnx.Rngs(0)))


def texts(size: int, length: int = 8, *, seed: int = 3) -> Tokens:
  """Returns random texts, of which all but the first are padded."""
  rng = np.random.default_rng(seed)
  ids = rng.integers(1, 20, (size, length)).astype(np.int32)
  ids[1:, -2:] = 0
  types = (np.arange(length) >= length // 2).astype(np.int32)
  return Tokens(jnp.asarray(ids), jnp.asarray(np.tile(types, (size, 1))))


def examples(
  num: int, size: int, *, seed: int = 0, domains: int = 2
) -> corpus.Corpus:
  """Returns random images whose brightness tells the label."""
  rng = np.random.default_rng(seed)
  labels = rng.integers(CLASSES, size=num).astype(np.int32)
  images = (
    rng.integers(0, 150, (num, size, size, 3))
    + 50 * labels[:, None, None, None]
  )
  return corpus.Corpus(
    labels=labels,
    domains=np.sort(np.arange(num, dtype=np.int32) % domains),
    groups=None,
    domain_names=tuple('abcdef'[:domains]),
    class_names=tuple('xyz'),
    inputs=images.astype(np.uint8),
    task=tasks.Task('classification', 3),
  )


def batch(size: int, *lead: int, seed: int = 3) -> client.Batch:
  """Returns random examples with the given leading axes; one is padding."""
  rng = np.random.default_rng(seed)
  valid = np.ones(lead, bool)
  valid[..., -1] = False
  return client.Batch(
    jnp.asarray(rng.integers(0, 256, (*lead, size, size, 3)).astype(np.uint8)),
    jnp.asarray(rng.integers(0, CLASSES, lead).astype(np.int32)),
    jnp.asarray(valid),
  )


def experiment(case: str = 'fedra', **changes: Any) -> config.Experiment:
  """Returns a tiny experiment.

  Args:
    case: A method, or method:variant.
    **changes: Fields of sections, such as `clients={'budgets': (4, 4)}`.
  """
  name, _, variant = case.partition(':')
  e = config.Experiment(
    method=name,
    rounds=3,
    seed=1,
    clients=config.Clients(
      partition='iid', count=4, budgets=BUDGETS, cohort='uniform', cohort_size=4
    ),
    # Slabs of two, so that some are padded.
    engine=config.Engine(slab=2),
    local=config.Local(
      lr=0.1, steps=2, batch_size=4, weight_decay=0.01, clip_norm=0.5
    ),
  )
  # As `defaults.resolve` would leave them.
  e.fedadapter.projections, e.fedadapter.placement = 'free', 'sequential'
  e.tiers.head = 'own'
  if name == 'heterotune':
    e.model.tune, e.clients.budgets = 'adapter', ()
    e.tiers.weights = ('large', 'small')
    e.fedadapter.rank = 3
  if name == 'composed':
    _compose(e, variant.split('+'))
  elif variant:
    getattr(e, name).variant = variant
  e.width = config.Width(rates=(1.0, 0.5), axes=('embed',), distill=True)
  e.raffm.space, e.raffm.embed, e.raffm.layers = (
    'custom',
    (1.0, 0.5),
    (1.0, 0.5),
  )
  e.raffm.priority = 'none'
  if name == 'composed':
    e.raffm.layers = (1.0,)
  # The ranks of `Stack`.
  e.lora.rank, e.lora.alpha, e.rank.ranks = 2, 4.0, (2, 1)
  if name in ('scaffold', 'feddyn'):
    e.local.momentum = 0.0
  if name in ('prunefl', 'prism'):
    # A stack has nothing to prune but its head.
    e.model.tune, e.prunefl.threshold = 'full', 0.0
  for section, fields in changes.items():
    if not isinstance(fields, dict):
      setattr(e, section, fields)
      continue
    for field, value in fields.items():
      setattr(getattr(e, section), field, value)
  return e


def _compose(e: config.Experiment, parts: list[str]) -> None:
  """Sets which axes are composed, by the names of their methods."""
  for part in parts:
    if part == 'branches':
      e.composed.branches, e.model.tune = (2, 1), 'adapter'
      e.fedadapter.rank, e.fedadapter.branches = 3, 2
    for axis in ('depth', 'width', 'rank'):
      if part in RULES[f'composed.{axis}'].choices:
        setattr(e.composed, axis, part)


@dataclasses.dataclass(frozen=True)
class Run:
  """A method on a model and in-memory data; 12 examples a client."""

  experiment: config.Experiment
  algorithm: Algorithm
  planner: plan.Planner

  @property
  def foundation(self) -> Any:
    """The model as the method starts with it."""
    return self.algorithm.model

  @property
  def theta(self) -> Tree:
    """What is trained, at the start."""
    return self.algorithm.model.theta

  @property
  def axes(self) -> Axes:
    """Its axes."""
    return self.algorithm.model.axes

  @property
  def local_opt(self) -> optax.GradientTransformation:
    """The clients' optimizer."""
    return local_optimizer.build(self.experiment.local)

  @functools.cached_property
  def engine(self) -> round_lib.Engine:
    """The engine, compiled."""
    e = self.experiment
    engine = round_lib.Engine(
      self.algorithm,
      self.local_opt,
      server_optimizer.build(e.server),
      schedule=local_optimizer.schedule(e.local),
    )
    batches = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype),
      self.planner.plan(0).works[0].own.batches,
    )
    engine.compile(
      self.planner.widths,
      lambda _: batches,
      self.planner.info_shapes,
      e.engine.mode,
      e.engine.chunk,
    )
    return engine

  def rounds(self, num: int) -> server.ServerState:
    """Runs some rounds from the start."""
    state, key = self.engine.init(), jax.random.key(self.experiment.seed)
    for rnd in range(num):
      planned = self.planner.plan(rnd)
      state, _ = self.engine.round(
        state, planned, key, self.experiment.local.lr
      )
    return state


def run(
  e: config.Experiment,
  found: Any = None,
  data: corpus.Corpus | None = None,
) -> Run:
  """Builds a run; of the stack on random images unless told otherwise."""
  budgets = tuple(map(int, e.clients.budgets or (DEPTH,) * e.clients.count))
  if found is None and e.method == 'heterotune':
    found = federated_stacks(
      (DEPTH, bottleneck.Bottleneck(3, 2)), (2, bottleneck.Bottleneck(3, 1))
    )
  if found is None:
    found = stack(e.lora.dropout, mlp=e.method == 'prism')
    if e.model.tune == 'adapter':
      found = _split(Stack(None, bottleneck.Bottleneck(3, 2)))
  algorithm = build(e, found, budgets)
  size = VIT_SIZE if _is_vit(found) else STACK_SIZE
  data = data or examples(12 * len(budgets), size)
  clients = len(budgets)
  indices = shares.Shares.of(np.array_split(np.arange(12 * clients), clients))
  domains = np.sort(np.arange(clients) % 2)
  planner = plan.Planner(e, algorithm, data, indices, domains)
  return Run(e, algorithm, planner)


def _is_vit(found: Any) -> bool:
  return 'norm' in {**found.base, **found.theta}


def build(
  e: config.Experiment,
  found: Any,
  budgets: tuple[int, ...] = BUDGETS,
  present: np.ndarray | None = None,
  widths: dict[str, int] | None = None,
) -> Algorithm:
  """Builds a method on a model, or on the models of a federation.

  Args:
    e: The experiment.
    found: The model.
    budgets: Of each client.
    present: Which classes each client has, if that is known.
    widths: Size of each axis, unless it is that of the usual stack or ViT.
  """
  if widths is None:
    widths = {'layer': DEPTH, 'embed': 6} | dict.fromkeys(_HEADS, 1)
    if _is_vit(found):
      widths = dict(sizes.Axes.of(vit_config()))
  tiers = getattr(found, 'tiers', {'model': found})
  depths = {federation.tier_axis(name): t.depth for name, t in tiers.items()}
  method = METHODS[e.method]
  method.check(e, widths | depths, budgets)
  facts = Facts(
    e,
    widths | depths,
    budgets,
    Task('classification', CLASSES),
    None if present is None else lambda client: present[client],
    {name: lambda _, tier=tier: tier for name, tier in tiers.items()},
  )
  algorithm = method.build(facts)
  if e.local.prox:
    algorithm = proximal.add(algorithm, e.local.prox)
  return algorithm


def vit_run(case: str, **options: Any) -> Run:
  """Returns a run of a ViT, all of whose parameters train.

  Args:
    case: A method, or method:variant.
    **options: Fields of the section `raffm`.
  """
  e = experiment(
    case,
    model={'tune': 'full'},
    local={'weight_decay': 0.0},
    clients={'budgets': (DEPTH,) * 4},
    engine={'slab': 4},
    raffm=options,
  )
  return run(e, vit_foundation(targets=(), full=True))


def signature(algorithm: Algorithm, client: int, rnd: int = 0) -> Signature:
  """Returns how much a client holds in a round."""
  return Signature.of(algorithm.rule.draw(rnd, [client])[0])


def context(algorithm: Algorithm, client: int, rnd: int = 0) -> Context:
  """Returns what a client's program knows in a round, on fresh memories."""
  (row,), start = algorithm.rule.draw(rnd, [client]), algorithm.client.state
  (info,) = algorithm.client.tell(rnd, [client])
  return Context(
    Signature.of(row),
    row,
    jax.tree.map(jnp.asarray, info),
    algorithm.aggregator.init(algorithm.model.theta),
    start(client) if start else (),
    jnp.float32(0.1),
    jnp.int32(rnd),
  )


def held(theta: Tree, axes: Axes, row: Any) -> Tree:
  """Returns for each leaf the NumPy index of what a row of indices holds."""

  def index(leaf, names):
    def along(n, name):
      held = row.get(name, n)
      return np.arange(held) if isinstance(held, int) else np.asarray(held)

    return np.ix_(*map(along, leaf.shape, names))

  return jax.tree.map(index, theta, axes)


def remembered(
  opt: optax.GradientTransformation, opt_state: Any
) -> list[np.ndarray]:
  """Returns what an optimizer's state has for each parameter, as leaves."""
  leaves = []
  optax.tree.map_params(opt, lambda x: leaves.append(np.array(x)), opt_state)
  return leaves


def assert_close(got: Tree, want: Tree, **tolerance: float) -> None:
  """Compares two trees leaf by leaf."""
  check = functools.partial(np.testing.assert_allclose, **tolerance)
  jax.tree.map(check, got, want)


def assert_equal(got: Tree, want: Tree) -> None:
  """Compares two trees bit for bit."""
  jax.tree.map(np.testing.assert_array_equal, got, want)
