"""Runs that start from what another left: an adapter of peft, a model's head."""

import dataclasses
import json

import jax
import numpy as np
import peft
import pytest
import safetensors.numpy
import tiny
import tiny_leaving
import torch
import transformers

from fedjax_tune.deploy import formats
from fedjax_tune.methods import METHODS
from fedjax_tune.models import adapter_start, heads, pretrained, tiers
from fedjax_tune.models import peft as tuned

# peft reads an attribute that transformers has renamed.
pytestmark = pytest.mark.filterwarnings('ignore:`is_gradient_checkpointing`')
_SIZE = tiny_leaving.SIZE


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  return tmp_path_factory.mktemp('bases')


def _write(case, form, folder, labels=tiny_leaving.LABELS):
  """Writes a case as `launch.export` does, but for its card."""
  folder.mkdir()
  formats.FORMATS[form].write(case.model, case.context, folder)
  record = json.dumps({'labels': labels})
  (folder / heads.EXPORTED).write_text(record)
  return folder


def _start(e, names=tiny_leaving.LABELS, task=None):
  """Returns the model with which an experiment starts."""
  (tier,) = tiers.load_one(e, '')
  task = task or _TASK
  weights = heads.put(tier.weights, task, names)
  return weights, tuned.build(e, weights, task)


_TASK = tiny_leaving.tasks.Task('classification', 3)


def _weights(case):
  assert case.context.source is not None
  return case.context.source


def _outputs(found, cfg):
  model = found.merge(found.base, found.theta)
  layers = np.arange(found.depth)
  return np.asarray(
    jax.jit(lambda x: model(x, layers))(tiny_leaving.inputs(cfg))
  )


@pytest.mark.parametrize('family', ['roberta', *tiny.slow('dinov2', 'llama')])
def test_an_adapter_comes_back(root, tmp_path, family):
  """Bit for bit, with its head: RoBERTa's has two layers."""
  base = tiny_leaving.base(root, family)
  case = tiny_leaving.make(base)
  folder = _write(case, 'peft', tmp_path / 'out')
  e = case.experiment
  e.lora.init = str(folder)
  weights, found = _start(e)
  tiny.assert_equal(jax.device_get(found.theta), case.model.theta)
  want = tiny_leaving.run(case.model)
  np.testing.assert_allclose(
    _outputs(found, case.model.config), want, atol=1e-6
  )
  assert f'{folder}: its head of 3 outputs is kept.' in weights.notes


@pytest.mark.parametrize(
  'family', ['deit', 'distilbert', *tiny.slow('vit', 'dinov2')]
)
def test_a_model_comes_back_with_its_head(root, tmp_path, family):
  case = tiny_leaving.make(tiny_leaving.base(root, family))
  folder = _write(case, 'hf', tmp_path / 'out')
  e = case.experiment
  e.model.weights = str(folder)
  _, found = _start(e)
  want = tiny_leaving.run(case.model)
  got = _outputs(found, case.model.config)
  np.testing.assert_allclose(got, want, atol=1e-4)
  # Of other classes it begins anew.
  weights, found = _start(e, ('x', 'y', 'w'))
  assert np.abs(_outputs(found, case.model.config) - want).max() > 1e-2
  assert any('of other classes' in note for note in weights.notes)


def test_other_folders_bring_no_head(root):
  """As ever: only a folder of this package's own is taken at its word."""
  loaded = pretrained.load_pretrained(
    str(tiny_leaving.base(root, 'vit')), '', _SIZE
  )
  assert not loaded.head


def test_an_adapter_that_peft_trained(root, tmp_path):
  base = str(tiny_leaving.base(root, 'bert'))
  torch.manual_seed(0)
  auto = transformers.AutoModelForSequenceClassification
  settings = peft.LoraConfig(
    task_type='SEQ_CLS', r=3, lora_alpha=4, target_modules=['query', 'value'],
    init_lora_weights=False,
  )  # fmt: skip
  model = peft.get_peft_model(auto.from_pretrained(base), settings).eval()
  model.save_pretrained(tmp_path)
  case = tiny_leaving.make(base)
  e = case.experiment
  e.lora.init, e.lora.targets = str(tmp_path), ('attn.q', 'attn.v')
  # It does not say of which classes its head is.
  task = tiny_leaving.tasks.Task('classification', 2)
  _, found = _start(e, ('no', 'yes'), task)
  cfg = case.model.config
  read = tiny_leaving.torch_inputs(tmp_path, cfg, tiny_leaving.inputs(cfg))
  with torch.no_grad():
    want = model(**read).logits.numpy()
  got = _outputs(found, cfg)
  np.testing.assert_allclose(got, want, atol=1e-4)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'rank': 4}, r'lora.rank=4 must be 3, as .*adapter_config.json has it'),
    ({'alpha': 8.0}, r'lora.alpha=8 must be 4, as '),
    (
      {'targets': ('attn.q',)},
      r"lora.targets=.* must be \('attn.proj', 'attn.q",
    ),
    ({'patch_embed': False}, r'lora.patch_embed=False must be True'),
    ({'init': '/none'}, "lora.init='/none': /none does not exist"),
    ({'init': '/'}, "lora.init='/' must be a folder of peft"),
  ],
)
def test_what_an_adapter_is_must_be_said(root, tmp_path, changes, message):
  case = tiny_leaving.make(tiny_leaving.base(root, 'vit'))
  folder = _write(case, 'peft', tmp_path / 'out')
  lora = dataclasses.replace(
    case.experiment.lora, **{'init': str(folder), **changes}
  )
  with pytest.raises((ValueError, FileNotFoundError), match=message):
    adapter_start.load(lora, _weights(case))


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'peft_type': 'IA3'}, "peft_type='IA3' must be LORA"),
    ({'use_dora': True}, 'use_dora=True is not supported'),
    ({'rank_pattern': {'q': 2}}, 'rank_pattern=.* is not supported'),
    ({'lora_alpha': -1}, 'lora_alpha=-1 must be a number above 0'),
  ],
)
def test_other_adapters_are_refused(root, tmp_path, changes, message):
  case = tiny_leaving.make(tiny_leaving.base(root, 'vit'))
  folder = _write(case, 'peft', tmp_path / 'out')
  path = folder / 'adapter_config.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))
  lora = dataclasses.replace(case.experiment.lora, init=str(folder))
  with pytest.raises(ValueError, match=message):
    adapter_start.load(lora, _weights(case))


@pytest.mark.parametrize(
  ('family', 'prefix', 'message'),
  [
    ('roberta', 'roberta.', r'an adapter of a roberta \(.*roberta\), but the'),
    ('llama', 'model.', r'an adapter of a llama \('),
    ('vit', 'other.', r'an adapter of another model \('),
  ],
)
def test_an_adapter_of_another_kind(root, tmp_path, family, prefix, message):
  case = tiny_leaving.make(tiny_leaving.base(root, family))
  folder = _write(case, 'peft', tmp_path / 'out')
  path = folder / 'adapter_model.safetensors'
  own = 'vit.' if family == 'vit' else prefix
  tensors = {
    name.replace(own, prefix, 1): x
    for name, x in safetensors.numpy.load_file(path).items()
  }
  safetensors.numpy.save_file(tensors, path)
  other = tiny_leaving.make(tiny_leaving.base(root, 'bert'))
  # Other ranks are the lesser fault.
  lora = dataclasses.replace(case.experiment.lora, init=str(folder), rank=7)
  with pytest.raises(ValueError, match=message) as caught:
    adapter_start.load(lora, _weights(other))
  assert f'but the model is a bert ({_weights(other).source})' in str(
    caught.value
  )


def test_flora_would_throw_an_adapter_away():
  e = tiny.experiment('flora', lora={'init': 'folder'})
  with pytest.raises(ValueError, match=r"lora\.init='folder' must be ''"):
    METHODS['flora'].check(e, {'layer': 4}, (4,) * 4)
