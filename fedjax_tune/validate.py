"""What an experiment must fulfil, as far as that shows without its data."""

from collections.abc import Callable, Collection, Iterator
import dataclasses
import difflib
import functools
import math
import typing
from typing import Any, NamedTuple

from fedjax_tune import config, devices


class _Rule(NamedTuple):
  holds: Callable[[Any], bool]
  text: Callable[[Any], str]


def _rule(holds: Callable[[Any], bool], text: str) -> _Rule:
  return _Rule(holds, lambda _: text)


def _at_least(low: int) -> _Rule:
  return _rule(lambda x: x >= low, f'must be at least {low}')


def _one_of(*names: str) -> _Rule:
  def text(value: str) -> str:
    nearest = difflib.get_close_matches(value, names, n=1)
    hint = f'; did you mean {nearest[0]!r}?' if nearest else ''
    return f'must be one of {", ".join(map(repr, names))}{hint}'

  return _Rule(lambda x: x in names, text)


_POSITIVE = _rule(lambda x: x > 0, 'must be above 0')
_FRACTION = _rule(lambda x: 0 <= x < 1, 'must lie in [0, 1)')
_SHARE = _rule(lambda x: 0 <= x <= 1, 'must lie in [0, 1]')
_DECAY = _rule(lambda x: 0 < x <= 1, 'must lie in (0, 1]')
_NAMED = _rule(bool, 'must not be empty')

_WITHOUT_DOMAINS = (
  'iid',
  'dirichlet',
  'pathological',
  'quantity',
  'k_shot',
  'natural',
)
# For a tuple the rule is about each element.
_RULES = {
  'rounds': _at_least(1),
  'seed': _at_least(0),
  'eval_every': _at_least(1),
  'checkpoint_every': _at_least(1),
  'model.weights': _NAMED,
  'model.tune': _one_of(
    'lora', 'adapter', 'bitfit', 'prompt', 'prefix', 'full'
  ),
  'model.prompt_tokens': _at_least(1),
  'model.dtype': _one_of('float32', 'bfloat16'),
  'lora.rank': _at_least(1),
  'lora.alpha': _POSITIVE,
  'lora.dropout': _FRACTION,
  'lora.targets': _one_of(
    'attn.q',
    'attn.k',
    'attn.v',
    'attn.proj',
    'mlp.fc1',
    'mlp.fc2',
    'mlp.gate',
    'mlp.up',
    'mlp.down',
  ),
  'fedadapter.rank': _at_least(1),
  'fedadapter.branches': _at_least(1),
  'fedadapter.after': _one_of('mlp', 'attn'),
  'fedadapter.core': _one_of('mlp', 'linear'),
  'fedadapter.gating': _one_of('static', 'token', 'uniform'),
  'fedadapter.placement': _one_of('sequential', 'parallel'),
  'fedadapter.scale': _POSITIVE,
  'tiers.weights': _NAMED,
  'tiers.depth': _at_least(0),
  'tiers.width': _DECAY,
  'tiers.joins': _at_least(0),
  'data.name': _NAMED,
  'data.task': _one_of('', 'next_token'),
  'data.image_size': _at_least(1),
  'data.domains': _NAMED,
  'data.num_classes': _at_least(0),
  'data.normalization': _one_of('', 'imagenet', 'clip', 'half'),
  'data.test_examples': _at_least(0),
  'data.lengths': _at_least(8),
  'clients.partition': _one_of(*_WITHOUT_DOMAINS, 'domain', 'domain_dirichlet'),
  'clients.count': _at_least(1),
  'clients.alpha': _POSITIVE,
  'clients.classes_per_client': _at_least(1),
  'clients.shots': _at_least(1),
  'clients.min_examples': _at_least(1),
  'clients.budgets': _at_least(1),
  'clients.cohort': _one_of('one_per_domain', 'uniform'),
  'clients.cohort_size': _at_least(1),
  'clients.devices': _one_of('', *devices.SETTINGS),
  'clients.seed': _at_least(0),
  'local.optimizer': _one_of('sgd', 'adam', 'adamw'),
  'local.lr': _POSITIVE,
  'local.momentum': _FRACTION,
  'local.weight_decay': _at_least(0),
  'local.clip_norm': _at_least(0),
  'local.batch_size': _at_least(1),
  'local.steps': _at_least(0),
  'local.epochs': _at_least(1),
  'local.prox': _at_least(0),
  'local.decay': _DECAY,
  'local.decay_every': _at_least(1),
  'server.optimizer': _one_of(
    'fedavg', 'fedavgm', 'fedadam', 'fedyogi', 'fedadagrad'
  ),
  'server.lr': _POSITIVE,
  'server.momentum': _FRACTION,
  'server.beta2': _FRACTION,
  'server.eps': _POSITIVE,
  'server.weighting': _one_of('uniform', 'examples'),
  'engine.mode': _one_of('auto', 'map', 'chunk', 'vmap'),
  'engine.chunk': _at_least(1),
  'engine.slab': _at_least(0),
  'engine.devices': _at_least(0),
  'inclusivefl.variant': _one_of('published', 'fedra_port'),
  'inclusivefl.beta': _SHARE,
  'depthfl.variant': _one_of('published', 'fedra_port'),
  'depthfl.ramp_rounds': _at_least(0),
  'depthfl.evaluate': _one_of('', 'ensemble', 'last'),
  'width.rates': _DECAY,
  'width.axes': _one_of('embed', 'heads', 'qk_dim', 'v_dim', 'ffn'),
  'raffm.mode': _one_of('slice', 'mask'),
  'raffm.head_dim': _DECAY,
  'raffm.heads': _DECAY,
  'raffm.ffn': _DECAY,
  'raffm.embed': _DECAY,
  'raffm.layers': _DECAY,
  'raffm.sampling': _one_of('random', 'sandwich', 'resource'),
  'raffm.deadline_s': _POSITIVE,
  'raffm.priority': _one_of('none', 'qk', 'qk+vo', 'qk+vo+ffn'),
  'raffm.reorder': _one_of('every_round', 'once'),
  'raffm.aggregation': _one_of('mean', 'coverage', 'zero_filled'),
  'prunefl.keep': _DECAY,
  'prunefl.threshold': _at_least(0),
  'prism.keep': _DECAY,
  'prism.power': _at_least(0),
  'prism.frob_decay': _at_least(0),
  'rank.ranks': _at_least(1),
  'rank.scaling': _one_of('common', 'client'),
  'hetlora.gamma': _DECAY,
  'hetlora.penalty': _at_least(0),
  'heterotune.reading': _one_of('nested', 'own', 'width'),
  'heterotune.branches': _at_least(1),
  'heterotune.foreign': _one_of('frozen', 'trained'),
  'heterotune.sites': _at_least(0),
  'heterotune.cmga': _one_of('off', 'pairwise', 'mean'),
}


def validate(experiment: config.Experiment, methods: Collection[str]) -> None:
  """Checks all that can be checked without data or weights.

  Args:
    experiment: What to check.
    methods: Names of the known methods.

  Raises:
    ValueError: With a line for each problem, naming field, value and rule.
  """
  rules = {'method': _one_of(*methods)} | _RULES
  problems = list(_ill_formed(experiment))
  if not problems:
    for path, rule in rules.items():
      for place, value in _values(experiment, path):
        if not rule.holds(value):
          text = rule.text(value)
          stop = '' if text.endswith('?') else '.'
          problems.append(f'{place}={value!r} {text}{stop}')
    problems += _empty(experiment)
    problems += _disagreements(experiment)
  if problems:
    raise ValueError('\n'.join(problems))


def _values(experiment: config.Experiment, path: str) -> list[tuple[str, Any]]:
  """Returns a field's value with its path, or those of its elements."""
  value = functools.reduce(getattr, path.split('.'), experiment)
  if isinstance(value, tuple):
    return [(f'{path}[{i}]', element) for i, element in enumerate(value)]
  return [(path, value)]


def _ill_formed(section: Any, prefix: str = '') -> Iterator[str]:
  """Yields unknown fields and wrong types."""
  kinds = {f.name: f.type for f in dataclasses.fields(section)}
  for name, value in vars(section).items():
    place = f'{prefix}{name}'
    if name not in kinds:
      nearest = difflib.get_close_matches(name, kinds, n=1)
      hint = f'; did you mean {prefix}{nearest[0]}?' if nearest else '.'
      yield f'{place} is not a field{hint}'
    elif not _fits(value, kinds[name]):
      yield f'{place}={value!r} must be {_describe(kinds[name])}.'
    elif dataclasses.is_dataclass(value):
      yield from _ill_formed(value, f'{place}.')


def _fits(value: Any, kind: Any) -> bool:
  if typing.get_origin(kind) is tuple:
    element = typing.get_args(kind)[0]
    return isinstance(value, tuple) and all(_fits(x, element) for x in value)
  if isinstance(value, bool):
    return kind is bool
  if kind is float:
    return isinstance(value, int | float) and math.isfinite(value)
  return isinstance(value, kind)


def _describe(kind: Any) -> str:
  if kind is float:
    return 'a finite float'
  return f'of type {kind if typing.get_origin(kind) else kind.__name__}'


def _empty(experiment: config.Experiment) -> Iterator[str]:
  """Yields tuples that need an element, or an order."""
  lengths = experiment.data.lengths
  if not lengths or list(lengths) != sorted(set(lengths)):
    yield f'data.lengths={lengths} must be ascending, and at least one.'
  if not experiment.fedadapter.after:
    yield 'fedadapter.after=() must not be empty.'
  for name in ('rates', 'axes'):
    if not getattr(experiment.width, name):
      yield f'width.{name}=() must not be empty.'
  for name in ('head_dim', 'heads', 'ffn', 'embed', 'layers'):
    if not getattr(experiment.raffm, name):
      yield f'raffm.{name}=() must not be empty.'


def _disagreements(experiment: config.Experiment) -> Iterator[str]:
  """Yields what is wrong about fields together."""
  if max(experiment.tiers.joins, default=-1) >= experiment.rounds:
    yield (
      f'tiers.joins={experiment.tiers.joins} must lie below rounds='
      f'{experiment.rounds}.'
    )
  cfg = experiment.clients
  if cfg.partition not in _WITHOUT_DOMAINS:
    return
  where = f'with clients.partition={cfg.partition!r}'
  if cfg.cohort == 'one_per_domain':
    yield f"clients.cohort='one_per_domain' must be 'uniform' {where}."
  if len(cfg.budgets) > cfg.count:
    yield (
      f'clients.budgets={cfg.budgets} must have at most clients.count='
      f'{cfg.count} numbers {where}.'
    )
