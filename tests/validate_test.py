"""Each rule of an experiment is broken once; good ones pass."""

import functools
import re

import pytest

from fedjax_tune import config, plugins
from fedjax_tune.config import validate
from fedjax_tune.config.field_rules import REGISTERED, RULES

_CHOICES = plugins.choices() | {'method': ('fedra', 'all_large')}

_BROKEN = [
  # field, value, what the message says after 'field=value '
  ('method', 'fedar', "must be one of 'fedra', 'all_large'; did you mean 'fed"),
  ('method', 'xyz', "must be one of 'fedra', 'all_large'."),
  ('method', 'FedAvg', "; did you mean 'all_large'?"),
  ('clients.cohort', 'random', "; did you mean 'uniform'?"),
  ('local.optimizer', 'SGD', "; did you mean 'sgd'?"),
  ('rounds', 0, 'must be at least 1.'),
  ('seed', -1, 'must be at least 0.'),
  ('seed', 2**32, 'must be at most 4294967295: random keys have 32 bits'),
  ('seed', 2**70, 'must be at most 4294967295: random keys have 32 bits'),
  ('rounds', 10**20, 'must be at most 1000000: all rounds are planned before'),
  ('local.batch_size', 10**8, 'must be at most 1000000: the examples of a'),
  ('data.image_size', 10**6, 'must be at most 4096: every patch of a pict'),
  ('clients.count', 10**9, 'must be at most 1000000: each client is planned'),
  ('clients.shots', 10**12, 'must be at most 1000000: the examples of a'),
  ('eval_every', 0, 'must be at least 1.'),
  ('checkpoint_every', 0, 'must be at least 1.'),
  ('model.weights', '', 'must not be empty.'),
  ('model.tune', 'promt', "must be one of 'lora', 'adapter', 'bitfit', 'pro"),
  ('model.prompt_tokens', 0, 'must be at least 1.'),
  ('model.dtype', 'float16', "must be one of 'float32', 'bfloat16'; did you"),
  ('lora.rank', 0, 'must be at least 1.'),
  ('lora.alpha', 0.0, 'must be above 0.'),
  ('lora.dropout', 1.0, 'must lie in [0, 1).'),
  ('lora.dropout', -0.1, 'must lie in [0, 1).'),
  ('fedadapter.projections', 'fre', "; did you mean 'free'?"),
  ('tiers.public_examples', 0, 'must be at least 1.'),
  ('tiers.head', 'comon', "; did you mean 'common'?"),
  ('tiers.head_rank', 0, 'must be at least 1.'),
  ('tiers.head_map', 'svd', "must be one of 'procrustes', 'ridge'."),
  ('data.name', '', 'must not be empty.'),
  ('data.image_size', -1, 'must be at least 0.'),
  ('data.num_classes', -1, 'must be at least 0.'),
  ('data.normalization', 'imgnet', "'half'; did you mean 'imagenet'?"),
  ('clients.partition', 'domains', "; did you mean 'domain'?"),
  ('clients.count', -1, 'must be at least 0.'),
  ('clients.alpha', 0.0, 'must be above 0.'),
  ('clients.classes_per_client', 0, 'must be at least 1.'),
  ('clients.min_examples', 0, 'must be at least 1.'),
  ('width.rates', (), 'must not be empty.'),
  ('raffm.ffn', (), 'must not be empty.'),
  ('data.lengths', (64, 32), 'must be ascending.'),
  ('clients.cohort', 'unifrom', "; did you mean 'uniform'?"),
  ('clients.cohort_size', -1, 'must be at least 0.'),
  ('clients.seed', -1, 'must be at least 0.'),
  ('clients.seed', 2**32, 'must be at most 4294967295: random keys'),
  ('local.optimizer', 'lamb', "must be one of 'sgd', 'adam', 'adamw'."),
  ('local.lr', 0.0, 'must be above 0.'),
  ('local.momentum', 1.0, 'must lie in [0, 1).'),
  ('local.weight_decay', -0.1, 'must be at least 0.'),
  ('local.clip_norm', -1.0, 'must be at least 0.'),
  ('local.batch_size', 0, 'must be at least 1.'),
  ('local.steps', -1, 'must be at least 0.'),
  ('local.epochs', 0, 'must be at least 1.'),
  ('local.prox', -1.0, 'must be at least 0.'),
  ('local.decay', 0.0, 'must lie in (0, 1].'),
  ('local.decay', 1.5, 'must lie in (0, 1].'),
  ('server.optimizer', 'fedsgd', "must be one of 'fedavg', 'fedavgm'"),
  ('server.lr', 0.0, 'must be above 0.'),
  ('server.momentum', 1.0, 'must lie in [0, 1).'),
  ('server.beta2', 1.0, 'must lie in [0, 1).'),
  ('server.eps', 0.0, 'must be above 0.'),
  ('server.weighting', 'size', "must be one of 'uniform', 'examples'."),
  ('engine.mode', 'pmap', "must be one of 'auto', 'map', 'chunk', 'vmap'"),
  ('engine.chunk', 0, 'must be at least 1.'),
  ('engine.slab', -1, 'must be at least 0.'),
  ('inclusivefl.variant', 'port', "must be one of 'published', 'fedra_port'"),
  ('inclusivefl.beta', 1.5, 'must lie in [0, 1].'),
  ('depthfl.variant', 'port', "must be one of 'published', 'fedra_port'"),
  ('depthfl.ramp_rounds', -1, 'must be at least 0.'),
  ('depthfl.evaluate', 'first', "must be one of '', 'ensemble', 'last'"),
  # Wrong types.
  ('rounds', 1.5, 'must be of type int.'),
  ('rounds', True, 'must be of type int.'),
  ('local.lr', '0.1', 'must be a finite float, 0 or within'),
  ('local.lr', float('nan'), 'must be a finite float, 0 or within'),
  ('local.clip_norm', float('inf'), 'must be a finite float, 0 or within'),
  ('local.lr', 10**400, 'must be a finite float, 0 or within the range of'),
  ('local.lr', 1e-50, 'must be a finite float, 0 or within the range of'),
  ('server.lr', 1e300, 'must be a finite float, 0 or within the range of'),
  ('prism.power', 400.0, 'must be at most 30: small singular values would'),
  ('model.remat', 1, 'must be of type bool.'),
  ('clients.budgets', [3, 3], 'must be of type tuple[float, ...].'),
  ('clients.budgets', (1, 1.0), 'must be all whole numbers of blocks, or all'),
  ('lora.targets', ('auto', 'attn.q'), "must be ('auto',), or name maps alone"),
  ('lora', 8, 'must be of type Lora.'),
]


def _experiment(**fields):
  experiment = config.Experiment()
  for path, value in fields.items():
    *sections, name = path.split('.')
    setattr(functools.reduce(getattr, sections, experiment), name, value)
  return experiment


def _problems(**fields):
  with pytest.raises(ValueError) as caught:  # noqa: PT011
    validate.validate(_experiment(**fields), _CHOICES)
  return str(caught.value).splitlines()


@pytest.mark.parametrize(('path', 'value', 'says'), _BROKEN)
def test_broken_rule(path, value, says):
  (line,) = _problems(**{path: value})
  assert line.startswith(f'{path}={value!r} ')
  assert says in line


def test_registered_names_are_told():
  told = {path for path, rule in RULES.items() if rule is REGISTERED}
  assert told == set(plugins.choices())


@pytest.mark.parametrize(
  ('path', 'value', 'line'),
  [
    (
      'clients.budgets',
      (3, 2, 0),
      'clients.budgets[2]=0 must be a whole number of blocks, at least 1, or a'
      ' share of them in (0, 1].',
    ),
    (
      'clients.budgets',
      (0.5, 3.0),
      'clients.budgets[1]=3.0 must be a whole number of blocks, at least 1, or a'
      ' share of them in (0, 1].',
    ),
    ('data.domains', ('a', ''), "data.domains[1]='' must not be empty."),
  ],
)
def test_element_is_named(path, value, line):
  assert _problems(**{path: value}) == [line]


@pytest.mark.parametrize(
  ('path', 'value', 'says'),
  [
    ('lora.targets', ('attn.proj', 'mlp.fc3'), "'mlp.fc3' must be one of 'aut"),
    ('width.axes', ('embed', 'layer'), "'layer' must be one of 'embed', "),
  ],
)
def test_element_is_known(path, value, says):
  (line,) = _problems(**{path: value})
  assert line.startswith(f'{path}[1]={says}')


def test_unknown_field_is_named_with_the_nearest():
  assert _problems(**{'local.batchsize': 4}) == [
    'local.batchsize is not a field; did you mean local.batch_size?'
  ]


def test_all_problems_come_at_once():
  lines = _problems(**{'rounds': 0, 'lora.rank': 0, 'server.lr': -1.0})
  assert [line.partition('=')[0] for line in lines] == [
    'rounds',
    'lora.rank',
    'server.lr',
  ]


def test_rules_are_checked_beside_wrong_types():
  lines = _problems(**{'rounds': 'x', 'local.batchsize': 4, 'lora.rank': 0})
  assert [re.split('[= ]', line)[0] for line in lines] == [
    'rounds',
    'local.batchsize',
    'lora.rank',
  ]


def test_partition_without_domains():
  fields = {'clients.partition': 'iid', 'clients.count': 2}
  fields |= {'clients.cohort': 'one_per_domain', 'clients.budgets': (3, 2, 1)}
  lines = _problems(**fields)
  assert len(lines) == 2
  assert "clients.cohort='one_per_domain' must be 'uniform'" in lines[0]
  assert 'must have at most clients.count=2 numbers' in lines[1]


@pytest.mark.parametrize(
  'fields',
  [
    {},
    {'lora.alpha': 4, 'local.clip_norm': 0, 'local.steps': 0},
    {'clients.budgets': (3,) * 6, 'data.domains': ('a', 'b')},
    {'clients.budgets': (1.0, 0.5), 'clients.partition': 'iid'},
    {
      'clients.partition': 'iid',
      'clients.cohort': 'uniform',
      'clients.count': 2,
      'clients.budgets': (2, 1),
    },
  ],
)
def test_good_experiments_pass(fields):
  validate.validate(_experiment(**fields), _CHOICES)
