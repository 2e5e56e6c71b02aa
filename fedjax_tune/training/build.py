"""Turns an experiment's names into objects; no other module does that."""

from collections.abc import Mapping, Sequence
import dataclasses
import functools

import numpy as np

from fedjax_tune import config
from fedjax_tune.costs import capacity, fit, hardware
from fedjax_tune.data import (
  arrays,
  corpus,
  partition,
  shares,
)
from fedjax_tune.data import fetch as fetching
from fedjax_tune.engine import batches as batching
from fedjax_tune.engine import hosts, personal
from fedjax_tune.engine.algorithm import Algorithm
from fedjax_tune.engine.plan import Planner
from fedjax_tune.methods import METHODS, augment
from fedjax_tune.models import (
  peft,
  pretrained,
  tiers,
)
from fedjax_tune.training import (
  agreement,
  aligned,
  defaults,
  fitting,
  frozen,
  method,
  ownership,
  provisions,
  shown,
)


@dataclasses.dataclass(frozen=True)
class Setup:
  """Everything that a run needs.

  Attributes:
    experiment: The run's configuration, with no field left open.
    algorithm: The method, with its model.
    train: Training data.
    test: Test data.
    partition: Which examples each client has.
    budgets: Blocks that each client can hold.
    sizes: Size of each axis along which clients may differ.
    devices: What each client computes with; () leaves it open.
    find: The search for what a device can train; None if nothing is cut.
    fits: What each client's device trains, with `clients.fit`; else ().
    planner: Plans the rounds.
    tokenizers: For each tier the folder of its tokenizer; None for pictures.
    readers: For each tier, which tokenizer's view of the data it reads.
    weights: A hash of the pretrained weights and their sizes.
    notes: What a user should be told before the run, a sentence each.
    features: Both splits as features of the frozen model, if models read those
      (`frozen.py`); else ().
    validation: For each client the positions of its part of the validation
      split, in the training data; None without such a split.
    held_out: The same for the examples by which each client is judged.
  """

  experiment: config.Experiment
  algorithm: Algorithm
  train: corpus.Corpus
  test: corpus.Corpus
  partition: partition.Partition
  budgets: tuple[int, ...]
  sizes: dict[str, int]
  devices: tuple[hardware.Device, ...]
  find: fitting.Solver | None
  fits: tuple[fit.Fit, ...]
  planner: Planner
  tokenizers: dict[str, str | None]
  readers: dict[str, int]
  weights: str
  notes: tuple[str, ...]
  features: tuple[corpus.Corpus, ...] = ()
  validation: shares.Shares | None = None
  held_out: shares.Shares | None = None

  @property
  def inputs(self) -> tuple[corpus.Corpus, ...]:
    """Training and test data as models read them."""
    return self.features or (self.train, self.test)

  def own_data(
    self, clients: Sequence[int]
  ) -> tuple[corpus.Corpus, list[np.ndarray]]:
    """Returns examples, and for each client the positions of those like its own.

    These are examples held out of its training, or test examples.
    """
    train, test = self.inputs
    if self.held_out is not None:
      return train, [self.held_out[k] for k in clients]
    parts = self.partition
    rows = personal.own_examples(
      train.labels,
      [parts.indices[k] for k in clients],
      parts.domains[list(clients)],
      test,
    )
    return test, rows


def build(
  experiment: config.Experiment,
  *,
  fetch: bool = False,
  data: arrays.Arrays | None = None,
  parts: Sequence[np.ndarray] | None = None,
  values: aligned.Values | None = None,
) -> Setup:
  """Checks an experiment and builds everything that it names.

  Args:
    experiment: What to build.
    fetch: Whether to fetch data and weights that are not there.
    data: Its data, if they are in memory.
    parts: For each client the positions of its training examples; None divides
      them as `clients.partition` says.
    values: What aligned the run's models when it began; None computes it.

  Raises:
    ValueError: Something in the experiment is wrong; the message names the
      field, its value and the rule.
    FileNotFoundError: Data or weights are not where they should be; the message
      has the command that fetches them.
    RuntimeError: Data or weights could not be fetched.
  """
  experiment = defaults.resolve(experiment, data, parts)
  if fetch:
    provisions.obtain(experiment, data)
  agreed = agreement.agree(experiment, data)
  agreement.check_devices(experiment.engine)
  found, budgets = agreed.tiers, agreed.budgets
  readers = tiers.readers(found)
  train, test = _load_data(experiment.data, found, readers, data)
  found = method.with_heads(found, train.task, train.class_names)
  weights = found[0].weights
  for tier in found:
    for split in (train, test):
      peft.check_tokens(split.view(readers[tier.name]), tier.weights)
  owners = ownership.divide(experiment, train, parts)
  owned, public = owners.owned, owners.public
  notes = [note for tier in found for note in tier.weights.notes]
  notes += owners.notes
  steps = batching.local_steps(experiment.local, owned.sizes())
  capacity.check_round(
    experiment, agreed.cohort, int(steps.max()), agreed.widths
  )
  sizes = agreed.widths | agreed.depths
  find = fitting.solver(
    experiment,
    # Of the weights only their sizes: what holds them keeps them for the run.
    functools.partial(peft.shapes, experiment, weights.config, train.task),
    train,
    sizes,
  )
  fits = ()
  if find and experiment.clients.fit:
    fits = fitting.fit_all(experiment, find, agreed.devices, steps)
  fitted = fitting.by_menu(fits)
  if 'depth' in fitted:
    budgets = fitted['depth']
    METHODS[experiment.method].check(experiment, sizes, budgets)
  algorithm = method.build(
    experiment,
    found,
    train.task,
    sizes,
    budgets,
    owned.present(train),
    fitted,
    shown.Public(experiment, found, readers, train, public, data),
    values,
  )
  changes = experiment.data
  if train.lengths is None and (changes.flip or changes.crop):
    algorithm = augment.add(algorithm, flips=changes.flip, shift=changes.crop)
  features = ()
  if experiment.engine.cache_frozen:
    features, told = frozen.compute(
      experiment, algorithm, len(owned), (train, test)
    )
    notes.append(told)
  read, _ = features or (train, test)
  planner = Planner(
    experiment,
    algorithm,
    read,
    owned.indices,
    owned.domains,
    readers,
    hosts.index(),
    hosts.count(),
    method.fsdp_devices(experiment.engine),
  )
  return Setup(
    experiment=experiment,
    algorithm=algorithm,
    train=train,
    test=test,
    partition=owned,
    budgets=budgets,
    sizes=agreed.widths | {'rank': experiment.lora.rank},
    devices=agreed.devices,
    find=find,
    fits=fits,
    planner=planner,
    tokenizers={tier.name: tier.weights.tokenizer for tier in found},
    readers=readers,
    weights=method.hash_weights(found),
    notes=(*dict.fromkeys(notes), *shown.notes(public)),
    features=features,
    validation=owners.validation,
    held_out=owners.held_out,
  )


def data_dir(cfg: config.Data) -> str:
  """Returns the folder of data and weights."""
  return str(fetching.data_dir(cfg.data_dir))


def _load_data(
  cfg: config.Data,
  found: tuple[tiers.Tier, ...],
  readers: Mapping[str, int],
  data: arrays.Arrays | None,
) -> tuple[corpus.Corpus, corpus.Corpus]:
  """Loads a set, as each tokenizer of the tiers reads it."""
  first: dict[int, pretrained.Pretrained] = {}
  for tier in found:
    first.setdefault(readers[tier.name], tier.weights)
  load = data.load if data else corpus.load
  views = [load(cfg, w.tokenizer, w.pad) for w in first.values()]
  (train, *trains), (test, *tests) = zip(*views, strict=True)
  return train.seen_as(trains), test.seen_as(tests)
