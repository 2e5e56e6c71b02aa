"""The experiment files: they load, take flags, and run end to end."""

import contextlib
import importlib
import pathlib
import sys

from absl import flags
from ml_collections import config_flags
import numpy as np
from PIL import Image
import pytest
import tensorflow_datasets as tfds

from fedjax_tune import config, plugins
from fedjax_tune.config import validate
from fedjax_tune.data import nico_lists
from fedjax_tune.methods import METHODS
from fedjax_tune.training import loop

# ml_collections loads files in a way that Python is about to drop.
pytestmark = pytest.mark.filterwarnings('ignore:the load_module')

_FOLDER = pathlib.Path(__file__).parent.parent / 'experiments'
# Those that begin with '_' are parts of others.
_NAMES = sorted(p.stem for p in _FOLDER.glob('*.py') if p.stem[0] != '_')
_SKEWS = [
  (name, skew)
  for name in ('fedra_domainnet', 'fedra_nico')
  for skew in ('feature', 'feature_label')
]


@pytest.fixture(autouse=True)
def _forget():
  """Forgets methods that an experiment registers, and its module of them."""
  known, loaded = set(METHODS), set(sys.modules)
  yield
  for name in set(METHODS) - known:
    del METHODS[name]
  for name in set(sys.modules) - loaded:
    if name.startswith('experiments._'):
      del sys.modules[name]


def _get(name, *args):
  return importlib.import_module(f'experiments.{name}').get_config(*args)


def _parse(file, *overrides):
  argv = ['train', f'--config={_FOLDER / file}', *overrides]
  values = flags.FlagValues()
  holder = config_flags.DEFINE_config_file(
    'config', flag_values=values, sys_argv=argv
  )
  values(argv)
  return holder.value


@pytest.mark.parametrize('name', _NAMES)
def test_experiment_is_valid_and_takes_flags(name):
  plain = _get(name)
  validate.validate(plain, plugins.choices())
  budgets = plain.clients.budgets and (2, 1)
  experiment = _parse(
    f'{name}.py',
    '--config.method=all_small',
    '--config.rounds=17',
    '--config.seed=3',
    f'--config.clients.budgets={budgets}',
    '--config.lora.patch_embed=false',
  )
  assert isinstance(experiment, config.Experiment)
  assert experiment.method == 'all_small'
  assert (experiment.rounds, experiment.seed) == (17, 3)
  assert experiment.clients.budgets == budgets
  assert experiment.lora.patch_embed is False
  validate.validate(experiment, plugins.choices())


def test_a_colon_selects_the_skew():
  experiment = _parse('fedra_nico.py:feature_label', '--config.seed=1')
  assert experiment.rounds == 150
  assert experiment.data.name == 'nico'
  with pytest.raises(ValueError, match=r"SKEW='both' must be one of feature, "):
    _get('fedra_nico', 'both')


@pytest.mark.parametrize(
  ('override', 'says'),
  [
    ('--config.rounds=many', 'invalid literal'),
    ('--config.rounds=1.5', 'invalid literal'),
    ('--config.local.lr=fast', 'could not convert'),
    ('--config.model.remat=maybe', 'Non-boolean'),
  ],
)
def test_a_value_of_another_type_is_refused(override, says):
  with pytest.raises(flags.IllegalFlagValueError, match=says) as caught:
    _parse('fedra_emoji.py', override)
  assert override in str(caught.value)


@pytest.mark.parametrize(('name', 'skew'), _SKEWS)
def test_settings_are_those_of_the_authors(name, skew):
  e = _get(name, skew)
  few = skew == 'feature'
  assert e.lora == config.Lora(8, 8.0, 0.1, ('attn.proj', 'mlp.fc2'), True)
  assert e.rounds == (100 if few else 150)
  assert e.clients.count == (1 if few else 5)
  assert few or (e.clients.partition, e.clients.alpha) == (
    'domain_dirichlet',
    0.5,
  )
  assert e.clients.budgets == (12, 10, 8, 6, 4, 3)
  assert e.data.num_classes == {'domainnet': 100, 'nico': 60}[e.data.name]
  assert (e.data.image_size, e.data.normalization) == (224, 'clip')
  local, server = e.local, e.server
  assert (local.optimizer, local.lr, local.momentum) == ('sgd', 0.01, 0.9)
  assert (local.weight_decay, local.clip_norm) == (1e-5, 10)
  assert (local.batch_size, local.steps, local.epochs) == (128, 0, 1)
  assert local.equal_steps
  assert (server.optimizer, server.lr) == ('fedavg', 1.0)
  assert server.weighting == 'uniform'


@pytest.mark.parametrize(
  ('name', 'skew'),
  # Each file once, and each skew.
  [
    ('fedra_domainnet', 'feature'),
    ('fedra_nico', 'feature_label'),
    pytest.param('fedra_domainnet', 'feature_label', marks=pytest.mark.slow),
    pytest.param('fedra_nico', 'feature', marks=pytest.mark.slow),
  ],
)
def test_runs_end_to_end(name, skew, tmp_path):
  experiment = _shrink(_get(name, skew))
  if name == 'fedra_nico':
    experiment.data.data_dir = str(_tiny_nico(tmp_path / 'nico'))
    data = contextlib.nullcontext()
  else:
    data = tfds.testing.mock_data(num_examples=60)
  with data:
    summary = loop.train(experiment, str(tmp_path / 'run'))
  domains = summary['accuracy_by_domain']
  assert len(domains) == 6
  assert np.mean(list(domains.values())) == pytest.approx(summary['accuracy'])
  assert summary['compiles'] == 1
  assert summary['rounds'] == 2
  assert np.isfinite(summary['train_loss'])
  assert summary['uplink_bytes'] == summary['downlink_bytes'] > 0


def _shrink(experiment):
  """Keeps the setting; all sizes are tiny, and one program serves all."""
  experiment.rounds = 2
  experiment.model.weights = 'random:vit_test'
  experiment.data.image_size = 16
  experiment.clients.budgets = (2,) * 6
  experiment.clients.min_examples = 1
  experiment.local.batch_size = 4
  return experiment


def _tiny_nico(folder):
  """Writes 12 training images and 2 test images for each domain."""
  rng = np.random.default_rng(0)
  (folder / nico_lists.FOLDER).mkdir(parents=True)
  for domain in nico_lists.DOMAINS:
    for split, count in (('train', 12), ('test', 2)):
      lines = []
      for i in range(count):
        name = f'{domain}_{split}_{i}.png'
        pixels = rng.integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(folder / name)
        lines.append(f'{name} {rng.integers(60)}\n')
      (folder / nico_lists.FOLDER / f'{domain}_{split}.txt').write_text(
        ''.join(lines)
      )
  return folder
