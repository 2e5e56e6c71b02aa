"""Finds options of an experiment that are set but that nothing reads."""

from collections.abc import Collection, Iterator, Mapping
import dataclasses
import functools

from fedjax_tune import config
from fedjax_tune.config.field_rules import RULES


@dataclasses.dataclass(frozen=True)
class Need:
  """A condition for reading an option: a field has one of some values.

  Attributes:
    field: The dotted name.
    values: Values with which the option is read.
    but: If true, the option is read with all values except these.
  """

  field: str
  values: tuple[object, ...]
  but: bool = False

  def met(self, experiment: config.Experiment) -> bool:
    """Says whether an experiment meets the condition."""
    return (_value(experiment, self.field) in self.values) != self.but

  def __str__(self) -> str:
    listed = ' or '.join(map(repr, self.values))
    return f'{self.field}{" other than " if self.but else "="}{listed}'


# No method, but a part of `composed`.
_PREFIX = 'prefix'
# What a part of `composed` is called as a method, if not the same.
_ALONE = {'random': 'federated_dropout'}


@dataclasses.dataclass(frozen=True)
class Uses(Need):
  """A condition for reading an option: one of some methods, maybe composed."""

  def met(self, experiment: config.Experiment) -> bool:
    """Says whether an experiment uses one of the methods."""
    return not self._used(experiment).isdisjoint(self.values)

  def _used(self, experiment: config.Experiment) -> set[str]:
    if experiment.method != 'composed':
      return {experiment.method}
    parts = experiment.composed
    width = _ALONE.get(parts.width, parts.width)
    return {'composed', parts.depth, width, parts.rank} - {''}

  def __str__(self) -> str:
    names = [name for name in self.values if name != _PREFIX]
    listed = str(Need(self.field, tuple(names)))
    parts = [
      f'composed.{axis}={name!r}'
      for axis in ('depth', 'width', 'rank')
      for name in RULES[f'composed.{axis}'].choices
      if name and _ALONE.get(name, name) in self.values
    ]
    return ' or '.join([listed, *parts])


class Files(Need):
  """A condition for reading an option: data are the user's own files."""

  def met(self, experiment: config.Experiment) -> bool:
    """Says whether the data are files of one of the kinds."""
    return experiment.data.name.partition(':')[0] in self.values

  def __str__(self) -> str:
    listed = ' or '.join(f"'{kind}:PATH'" for kind in self.values)
    return f'{self.field}={listed}'


def _method(*names: str) -> Need:
  return Uses('method', names)


def _tune(*names: str) -> Need:
  return Need('model.tune', names)


def _partition(*names: str) -> Need:
  return Need('clients.partition', names)


_TABLE = Files('data.name', ('csv', 'jsonl', 'parquet', 'npz'))
_FILES = Files('data.name', ('folder', *_TABLE.values))
_ADAPTIVE = ('fedadam', 'fedyogi', 'fedadagrad')
_HETEROTUNE, _RAFFM = _method('heterotune'), _method('raffm')
_ONE_MODEL = Need('method', ('heterotune',), but=True)
_COMMON_HEAD = Need('tiers.head', ('own',), but=True)
_OF_WIDTH = ('heterofl', 'fedrolex', 'fjord', 'federated_dropout')
_OF_RANK = (
  'fedit',
  'rbla',
  'ffa_lora',
  'hetlora',
  'flexlora',
  'flora',
  'fedex_lora',
)
_WIDTH, _RANK = _method(*_OF_WIDTH), _method(*_OF_RANK)
_BUDGETS = _method(
  'fedra', 'all_small', 'exclusivefl', 'inclusivefl', 'depthfl', 'heterotune',
  'local_only', _PREFIX,
)  # fmt: skip
# Those that cut the model, so that its parts can be fitted to devices.
_FITTED = _method(
  *_OF_WIDTH, *_OF_RANK, 'raffm', 'fedra', 'all_small', 'exclusivefl',
  'inclusivefl', 'depthfl', 'composed', 'local_only',
)  # fmt: skip
_CUSTOM = (_RAFFM, Need('raffm.space', ('custom',)))

# Field -> conditions that must all hold for it to be read; () is always read.
READ: dict[str, tuple[Need, ...]] = {
  'method': (),
  'imports': (),
  'writers': (),
  'rounds': (),
  'seed': (),
  'eval_every': (),
  'eval_start': (),
  'checkpoint_every': (),
  'patience': (),
  'keep_best': (),
  'model.weights': (_ONE_MODEL,),
  'model.tune': (),
  'model.prompt_tokens': (_tune('prompt', 'prefix'),),
  'model.dtype': (),
  'model.remat': (),
  'model.dropout': (),
  'lora.rank': (_tune('lora'),),
  'lora.alpha': (_tune('lora'),),
  'lora.dropout': (_tune('lora'),),
  'lora.targets': (_tune('lora'),),
  'lora.patch_embed': (_tune('lora'),),
  'lora.init': (_tune('lora'),),
  'fedadapter.rank': (_tune('adapter'),),
  'fedadapter.branches': (_tune('adapter'), _ONE_MODEL),
  'fedadapter.after': (_tune('adapter'),),
  'fedadapter.core': (_tune('adapter'),),
  'fedadapter.gating': (_tune('adapter'),),
  'fedadapter.placement': (_tune('adapter'),),
  'fedadapter.scale': (_tune('adapter'),),
  'fedadapter.projections': (_tune('adapter'), _HETEROTUNE),
  'fedadapter.private': (
    _tune('adapter'),
    _HETEROTUNE,
    Need('fedadapter.projections', ('free',), but=True),
  ),
  'tiers.weights': (_HETEROTUNE,),
  'tiers.depth': (_HETEROTUNE,),
  'tiers.width': (_HETEROTUNE,),
  'tiers.joins': (_HETEROTUNE,),
  'tiers.public': (_HETEROTUNE,),
  'tiers.public_examples': (_HETEROTUNE,),
  'tiers.head': (_HETEROTUNE,),
  'tiers.head_rank': (_HETEROTUNE, _COMMON_HEAD),
  'tiers.head_map': (_HETEROTUNE, _COMMON_HEAD),
  'data.name': (),
  'data.task': (),
  'data.label_column': (_TABLE,),
  'data.text_column': (_TABLE,),
  'data.image_column': (_TABLE,),
  'data.domain_column': (_TABLE,),
  'data.client_column': (_TABLE,),
  'data.test_share': (_FILES,),
  'data.split_seed': (_FILES,),
  'data.bad_rows': (),
  'data.data_dir': (),
  'data.image_size': (),
  'data.domains': (),
  'data.num_classes': (),
  'data.normalization': (),
  'data.test_examples': (),
  'data.validation': (),
  'data.flip': (),
  'data.crop': (),
  'data.lengths': (),
  'clients.partition': (),
  'clients.count': (),
  'clients.alpha': (
    _partition('dirichlet', 'domain_dirichlet', 'inner_dirichlet', 'quantity'),
  ),
  'clients.shards': (_partition('shard'),),
  'clients.sizes': (_partition('sizes', 'inner_dirichlet'),),
  'clients.replace': (_partition('sizes', 'inner_dirichlet'),),
  'clients.distribution': (_partition('distribution'),),
  'clients.strictness': (_partition('continuous'),),
  'clients.group_size': (_partition('natural'),),
  'clients.classes_per_client': (_partition('pathological'),),
  'clients.shots': (_partition('k_shot'),),
  'clients.min_examples': (),
  'clients.divide_objects': (_partition('domain', 'domain_dirichlet'),),
  'clients.budgets': (_BUDGETS,),
  'clients.cohort': (),
  'clients.cohort_size': (Need('clients.cohort', ('uniform',)),),
  'clients.devices': (),
  'clients.fit': (_FITTED,),
  'clients.deadline_s': (_FITTED, Need('clients.fit', ('time', 'both'))),
  'clients.cut_first': (
    _method('composed'),
    Need('clients.fit', ('',), but=True),
  ),
  'clients.seed': (),
  'clients.held_out': (),
  'clients.report': (),
  'clients.report_steps': (Need('clients.report', (0,), but=True),),
  'local.optimizer': (),
  'local.lr': (),
  'local.momentum': (Need('local.optimizer', ('sgd',)),),
  'local.weight_decay': (),
  'local.clip_norm': (),
  'local.batch_size': (),
  'local.steps': (),
  'local.epochs': (Need('local.steps', (0,)),),
  'local.equal_steps': (Need('local.steps', (0,)),),
  # A first step is where the client started, and nothing pulls it back.
  'local.prox': (Need('local.steps', (1,), but=True),),
  'local.over_rounds': (),
  'local.decay': (Need('local.over_rounds', ('decay',)),),
  'local.decay_every': (
    Need('local.over_rounds', ('decay',)),
    Need('local.decay', (1,), but=True),
  ),
  'local.warmup': (),
  'local.schedule': (Need('local.steps', (1,), but=True),),
  'local.gamma': (Need('local.schedule', ('exponential',)),),
  'local.decay_mask': (Need('local.weight_decay', (0,), but=True),),
  'server.optimizer': (),
  'server.lr': (),
  'server.momentum': (
    Need('server.optimizer', ('fedavgm', 'fedadam', 'fedyogi')),
  ),
  'server.beta2': (Need('server.optimizer', ('fedadam', 'fedyogi')),),
  'server.eps': (Need('server.optimizer', _ADAPTIVE),),
  'server.weighting': (),
  'engine.mode': (),
  'engine.chunk': (Need('engine.mode', ('chunk',)),),
  'engine.slab': (),
  'engine.devices': (),
  'engine.fsdp': (),
  'engine.unroll': (),
  'engine.compilation_cache': (),
  'engine.cache_frozen': (),
  'fedra.coverage_repair': (_method('fedra'),),
  'inclusivefl.variant': (_method('inclusivefl'),),
  'inclusivefl.beta': (
    _method('inclusivefl'),
    Need('inclusivefl.variant', ('published',)),
  ),
  'depthfl.variant': (_method('depthfl'),),
  'depthfl.ramp_rounds': (_method('depthfl'),),
  'depthfl.evaluate': (_method('depthfl'),),
  'depthfl.feddyn': (_method('depthfl'),),
  'width.rates': (_WIDTH,),
  'width.axes': (_WIDTH,),
  'width.scaler': (_method('heterofl', 'fedrolex'),),
  'width.masked_loss': (_method('heterofl', 'fedrolex'),),
  'width.head_by_class': (_method('heterofl', 'fedrolex'),),
  'width.roll': (_method('fedrolex'),),
  'width.across_heads': (_method('fedrolex'),),
  'width.distill': (_method('fjord'),),
  'raffm.mode': (_RAFFM,),
  'raffm.space': (_RAFFM,),
  'raffm.head_dim': _CUSTOM,
  'raffm.heads': _CUSTOM,
  'raffm.ffn': _CUSTOM,
  'raffm.embed': _CUSTOM,
  'raffm.layers': _CUSTOM,
  'raffm.sampling': (_RAFFM, Need('raffm.mode', ('slice',))),
  'raffm.priority': (_RAFFM,),
  'raffm.reorder': (
    _RAFFM,
    _tune('full'),
    Need('raffm.priority', ('none',), but=True),
  ),
  'raffm.aggregation': (_RAFFM,),
  'prunefl.keep': (_method('prunefl'),),
  'prunefl.threshold': (_method('prunefl'),),
  'prism.keep': (_method('prism'),),
  'prism.power': (_method('prism'),),
  'prism.frob_decay': (_method('prism'),),
  'rank.ranks': (_RANK,),
  'rank.scaling': (_RANK,),
  'composed.depth': (_method('composed'),),
  'composed.width': (_method('composed'),),
  'composed.rank': (_method('composed'),),
  'composed.branches': (_method('composed'),),
  'feddyn.alpha': (_method('feddyn'),),
  'hetlora.gamma': (_method('hetlora'),),
  'hetlora.penalty': (
    _method('hetlora'),
    Need('hetlora.gamma', (1,), but=True),
  ),
  'heterotune.reading': (_HETEROTUNE,),
  'heterotune.branches': (_HETEROTUNE,),
  'heterotune.foreign': (_HETEROTUNE, Need('heterotune.reading', ('own',))),
  'heterotune.sites': (_HETEROTUNE,),
  'heterotune.every_block': (_HETEROTUNE,),
  'heterotune.mapping': (_HETEROTUNE, Need('heterotune.share', (True,))),
  'heterotune.share': (_HETEROTUNE,),
  'heterotune.cmga': (_HETEROTUNE,),
  'heterotune.personal': (_HETEROTUNE,),
}
_NONE: Mapping[str, object] = {}
# Read for one kind of data only; the model decides which.
OF_IMAGES = (
  'data.image_size',
  'data.flip',
  'data.crop',
  'data.normalization',
  'lora.patch_embed',
)
OF_TEXTS = ('data.lengths',)


def is_read(experiment: config.Experiment, path: str) -> bool:
  """Says whether a valid experiment reads an option."""
  return all(need.met(experiment) for need in READ[path])


def in_vain(
  experiment: config.Experiment,
  images: bool | None = None,
  registered: Collection[str] = (),
  usual: Mapping[str, object] = _NONE,
) -> list[str]:
  """Returns a line for each option that is set but that nothing reads.

  A default value does not count as set, nor does an empty one.

  Args:
    experiment: A valid experiment.
    images: Whether its model reads images; None while that is not known.
    registered: Fields that name something of the user's own, which may read any
      option that depends on them.
    usual: The default values of fields that data set and model decide.
  """
  other_kind = {True: OF_TEXTS, False: OF_IMAGES, None: ()}[images]
  lines = []
  for path, value in _set(experiment, usual):
    needs = [
      str(need)
      for need in READ[path]
      if need.field not in registered and not need.met(experiment)
    ]
    if not needs and path in other_kind:
      needs = ['texts' if images else 'images']
    if needs:
      lines.append(
        f'{path}={value!r} has no effect here: it is read only with '
        f'{" and ".join(needs)}.'
      )
  return lines


def _set(
  experiment: config.Experiment, usual: Mapping[str, object]
) -> Iterator[tuple[str, object]]:
  """Yields the fields that differ from the defaults and are not empty."""
  default = config.Experiment()
  for path in READ:
    value = _value(experiment, path)
    defaults = (_value(default, path), usual.get(path), (), '')
    if value not in defaults:
      yield path, value


def _value(experiment: config.Experiment, path: str) -> object:
  return functools.reduce(getattr, path.split('.'), experiment)
