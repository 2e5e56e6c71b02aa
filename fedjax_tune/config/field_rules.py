"""The rules that each field of an experiment must meet by itself."""

from collections.abc import Callable
from typing import Any, NamedTuple

from fedjax_tune.config import meanings


class Rule(NamedTuple):
  """A rule of one field, or of each element of a tuple.

  Attributes:
    holds: Whether a value of the right type fulfils it.
    text: What the message says about a value that doesn't: 'must be ...'.
    choices: The values that fulfil it, where they are few.
  """

  holds: Callable[[Any], bool]
  text: Callable[[Any], str]
  choices: tuple[str, ...] = ()


def _rule(holds: Callable[[Any], bool], text: str) -> Rule:
  return Rule(holds, lambda _: text)


def at_least(low: int) -> Rule:
  """Bounds a number from below."""
  return _rule(lambda x: x >= low, f'must be at least {low}')


def within(low: int, high: int, why: str) -> Rule:
  """Bounds a number from both sides; the message for one above says why."""

  def text(value: float) -> str:
    if value < low:
      return f'must be at least {low}'
    return f'must be at most {high}: {why}'

  return Rule(lambda x: low <= x <= high, text)


def one_of(*names: str) -> Rule:
  """Accepts one of some names, and suggests the nearest."""

  def text(value: str) -> str:
    nearest = meanings.nearest(value, names)
    hint = meanings.hint(nearest and repr(nearest))
    return f'must be one of {", ".join(map(repr, names))}{hint}'

  return Rule(lambda x: x in names, text, names)


_POSITIVE = _rule(lambda x: x > 0, 'must be above 0')
_FRACTION = _rule(lambda x: 0 <= x < 1, 'must lie in [0, 1)')
_SHARE = _rule(lambda x: 0 <= x <= 1, 'must lie in [0, 1]')
_DECAY = _rule(lambda x: 0 < x <= 1, 'must lie in (0, 1]')
_NAMED = _rule(bool, 'must not be empty')
_MODULE = _rule(
  lambda x: all(part.isidentifier() for part in x.split('.')),
  'must be the name of a module, as in an import',
)
_BUDGET = _rule(
  lambda x: x >= 1 if isinstance(x, int) else 0 < x <= 1,
  'must be a whole number of blocks, at least 1, or a share of them in (0, 1]',
)
_ANY = _rule(lambda _: True, '')
# What leaves a name to the data set and the model (`training/defaults.py`).
AUTO = 'auto'
# One of the names of a registry, of which `validate` is told.
REGISTERED = _rule(lambda _: True, '')

# Upper bounds of what a run counts, all far above any real use; beyond them,
# planning alone would take days, or more memory than there is.
_MOST = 10**6
_SEED = within(
  0, 2**32 - 1, 'random keys have 32 bits, so that larger seeds repeat others'
)
_ROUNDS = within(1, _MOST, 'all rounds are planned before the first one')
_RAMP = within(0, _MOST, 'there are at most as many rounds')
_CLIENTS = within(1, _MOST, 'each client is planned for by itself')
_OPEN_CLIENTS = within(0, _MOST, 'each client is planned for by itself')
_EXAMPLES = within(1, _MOST, 'the examples of a round are held in memory')
_STEPS = within(0, _MOST, 'the examples of a round are held in memory')
_PARAMETERS = within(1, _MOST, 'more parameters fit no memory')

# A tuple's rule applies to each element. Every field has a rule, if only
# `_ANY`; `tests/validate_test.py` checks that.
RULES = {
  'method': REGISTERED,
  'rounds': _ROUNDS,
  'seed': _SEED,
  'eval_every': at_least(1),
  'eval_start': _ANY,
  'checkpoint_every': at_least(1),
  'imports': _MODULE,
  'writers': REGISTERED,
  'patience': at_least(0),
  'keep_best': _ANY,
  'model.weights': _NAMED,
  'model.tune': one_of(
    'lora', 'adapter', 'bitfit', 'prompt', 'prefix', 'full', 'head'
  ),
  'model.prompt_tokens': _PARAMETERS,
  'model.dtype': one_of('float32', 'bfloat16'),
  'model.remat': _ANY,
  'model.dropout': _FRACTION,
  'lora.rank': _PARAMETERS,
  'lora.alpha': _POSITIVE,
  'lora.dropout': _FRACTION,
  'lora.targets': one_of(
    AUTO,
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
  'lora.patch_embed': _ANY,
  'lora.init': _ANY,
  'fedadapter.rank': _PARAMETERS,
  'fedadapter.branches': _PARAMETERS,
  'fedadapter.after': one_of('mlp', 'attn'),
  'fedadapter.core': one_of('mlp', 'linear'),
  'fedadapter.gating': one_of('static', 'token', 'uniform'),
  'fedadapter.placement': one_of(AUTO, 'sequential', 'parallel'),
  'fedadapter.scale': _POSITIVE,
  'fedadapter.projections': one_of(
    AUTO, 'free', 'random', 'aligned', 'aligned_start', 'alternating'
  ),
  'fedadapter.private': _ANY,
  'tiers.weights': _NAMED,
  'tiers.depth': at_least(0),
  'tiers.width': _DECAY,
  'tiers.joins': at_least(0),
  'tiers.public': _ANY,
  'tiers.public_examples': _EXAMPLES,
  'tiers.head': one_of(AUTO, 'own', 'common', 'common_any'),
  'tiers.head_rank': _PARAMETERS,
  'tiers.head_map': one_of('procrustes', 'ridge'),
  'data.name': _NAMED,
  'data.task': one_of('', 'next_token', 'regression'),
  'data.label_column': _ANY,
  'data.text_column': _ANY,
  'data.image_column': _ANY,
  'data.domain_column': _ANY,
  'data.client_column': _ANY,
  'data.test_share': _rule(lambda x: 0 < x < 1, 'must lie in (0, 1)'),
  'data.split_seed': _SEED,
  'data.bad_rows': one_of('refuse', 'leave_out'),
  'data.data_dir': _ANY,
  'data.image_size': within(
    0, 4096, 'every patch of a picture attends to every other'
  ),
  'data.domains': _NAMED,
  'data.num_classes': at_least(0),
  'data.normalization': one_of('', 'imagenet', 'clip', 'half'),
  'data.test_examples': at_least(0),
  'data.validation': _FRACTION,
  'data.flip': _ANY,
  'data.crop': within(0, 4096, 'a picture has no more pixels'),
  'data.lengths': within(
    8, 2**17, 'every token of a text attends to every other'
  ),
  'clients.partition': REGISTERED,
  'clients.count': _OPEN_CLIENTS,
  'clients.alpha': _POSITIVE,
  'clients.classes_per_client': at_least(1),
  'clients.shards': _EXAMPLES,
  'clients.sizes': _EXAMPLES,
  'clients.replace': _ANY,
  'clients.distribution': _ANY,
  'clients.strictness': _SHARE,
  'clients.group_size': _CLIENTS,
  'clients.shots': _EXAMPLES,
  'clients.min_examples': at_least(1),
  'clients.divide_objects': _ANY,
  'clients.budgets': _BUDGET,
  'clients.cohort': one_of(AUTO, 'one_per_domain', 'uniform'),
  'clients.cohort_size': at_least(0),
  'clients.devices': _ANY,
  'clients.fit': one_of('', 'time', 'memory', 'both'),
  'clients.deadline_s': _POSITIVE,
  'clients.cut_first': one_of('', 'depth', 'width', 'rank', 'branches'),
  'clients.seed': _SEED,
  'clients.held_out': _FRACTION,
  'clients.report': within(0, _MOST, 'there are at most as many clients'),
  'clients.report_steps': _STEPS,
  'local.optimizer': REGISTERED,
  'local.lr': _POSITIVE,
  'local.momentum': _FRACTION,
  'local.weight_decay': at_least(0),
  'local.clip_norm': at_least(0),
  'local.batch_size': _EXAMPLES,
  'local.steps': _STEPS,
  'local.epochs': _EXAMPLES,
  'local.equal_steps': _ANY,
  'local.prox': at_least(0),
  'local.over_rounds': one_of('decay', 'cosine'),
  'local.decay': _DECAY,
  'local.decay_every': at_least(1),
  'local.warmup': _RAMP,
  'local.schedule': REGISTERED,
  'local.gamma': _DECAY,
  'local.decay_mask': one_of('all', 'no_bias_norm'),
  'server.optimizer': REGISTERED,
  'server.lr': _POSITIVE,
  'server.momentum': _FRACTION,
  'server.beta2': _FRACTION,
  'server.eps': _POSITIVE,
  'server.weighting': one_of('uniform', 'examples'),
  'engine.mode': one_of('auto', 'map', 'chunk', 'vmap'),
  'engine.chunk': at_least(1),
  'engine.slab': at_least(0),
  'engine.devices': at_least(0),
  'engine.fsdp': _ANY,
  'engine.unroll': _ANY,
  'engine.compilation_cache': _ANY,
  'engine.cache_frozen': _ANY,
  'fedra.coverage_repair': _ANY,
  'inclusivefl.variant': one_of('published', 'fedra_port'),
  'inclusivefl.beta': _SHARE,
  'depthfl.variant': one_of('published', 'fedra_port'),
  'depthfl.ramp_rounds': _RAMP,
  'depthfl.evaluate': one_of('', 'ensemble', 'last'),
  'depthfl.feddyn': at_least(0),
  'width.rates': _DECAY,
  'width.axes': one_of('embed', 'heads', 'qk_dim', 'v_dim', 'ffn'),
  'width.scaler': _ANY,
  'width.masked_loss': _ANY,
  'width.head_by_class': _ANY,
  'width.roll': one_of('backward', 'forward'),
  'width.across_heads': _ANY,
  'width.distill': _ANY,
  'raffm.mode': one_of('slice', 'mask'),
  'raffm.space': REGISTERED,
  'raffm.head_dim': _DECAY,
  'raffm.heads': _DECAY,
  'raffm.ffn': _DECAY,
  'raffm.embed': _DECAY,
  'raffm.layers': _DECAY,
  'raffm.sampling': one_of('random', 'sandwich', 'resource'),
  'raffm.priority': one_of('none', 'qk', 'qk+vo', 'qk+vo+ffn'),
  'raffm.reorder': one_of('every_round', 'once'),
  'raffm.aggregation': one_of('mean', 'coverage', 'zero_filled'),
  'prunefl.keep': _DECAY,
  'prunefl.threshold': at_least(0),
  'prism.keep': _DECAY,
  'prism.power': within(
    0, 30, 'small singular values would be drawn with probability 0'
  ),
  'prism.frob_decay': at_least(0),
  'rank.ranks': _PARAMETERS,
  'rank.scaling': one_of('common', 'client'),
  'hetlora.gamma': _DECAY,
  'hetlora.penalty': at_least(0),
  'composed.depth': one_of('', 'fedra', 'prefix'),
  'composed.width': one_of('', 'raffm', 'heterofl', 'fedrolex', 'random'),
  'composed.rank': one_of('', 'fedit', 'hetlora', 'rbla'),
  'composed.branches': _PARAMETERS,
  'feddyn.alpha': _POSITIVE,
  'heterotune.reading': one_of('nested', 'own', 'width'),
  'heterotune.branches': _PARAMETERS,
  'heterotune.foreign': one_of('frozen', 'trained'),
  'heterotune.sites': at_least(0),
  'heterotune.every_block': _ANY,
  'heterotune.mapping': one_of('depth', 'index'),
  'heterotune.share': _ANY,
  'heterotune.personal': _ANY,
  'heterotune.cmga': one_of('off', 'pairwise', 'mean'),
}
