"""Tiny models that leave in each format, and what others make of them."""

import contextlib
import dataclasses
import functools
import json
import pathlib
from typing import Any

import jax
import numpy as np
import peft
from PIL import Image
import tiny
import tiny_text
import torch
import transformers

from fedjax_tune import config
from fedjax_tune.data import tasks
from fedjax_tune.deploy import formats, models
from fedjax_tune.engine import server
from fedjax_tune.models import (
  backbone,
  export,
  flax_folder,
  pretrained,
  sizes,
  tiers,
)
from fedjax_tune.models import peft as tuned
from fedjax_tune.training import learned, method
from fedjax_tune.typing import Tokens

DEPTH, SIZE, NUM = 2, 8, 2
LABELS = ('x', 'y', 'z')
_TEXT = sizes.TextConfig(DEPTH, 16, 4, 24, vocab=270, positions=16)
_IMAGE = sizes.ViTConfig(DEPTH, 16, 4, 32, patch=4, image_size=SIZE)
CONFIGS: dict[str, Any] = {
  'vit': _IMAGE,
  'deit': dataclasses.replace(_IMAGE, num_prefix=2),
  'dinov2': dataclasses.replace(_IMAGE, layer_scale=True),
  'bert': _TEXT,
  'roberta': dataclasses.replace(_TEXT, family='roberta', types=1, pad=1),
  'distilbert': dataclasses.replace(_TEXT, family='distilbert', types=0),
  'llama': sizes.DecoderConfig(
    DEPTH, 16, 2, 24, vocab=270, positions=16, group=2, head_dim=4, pad=1
  ),
}
TUNES = ('head', 'lora', 'bitfit', 'prompt', 'prefix', 'adapter', 'full')
_IMAGE_TARGETS = ('attn.q', 'attn.proj', 'mlp.fc2')
_LLAMA_TARGETS = ('attn.k', 'attn.proj', 'mlp.gate')


def write_base(folder: pathlib.Path, family: str) -> pathlib.Path:
  """Writes a model of noise, with a head of other classes."""
  config = dataclasses.replace(CONFIGS[family], num_classes=2, full=True)
  rng = np.random.default_rng(0)
  shapes = backbone.variables(config)
  draw = lambda s: np.float32(0.3 * rng.normal(size=s) + (len(s) == 1))
  params = {path: draw(v.shape) for path, v in shapes.items()}
  params = export.traverse_util.unflatten_dict(params)
  words = None
  if not isinstance(config, sizes.ViTConfig):
    write = (
      tiny_text.write_vocab if config.pad == 0 else tiny_text.write_roberta
    )
    words = write(folder / 'words')
  export.save_huggingface(folder / family, config, params, ['no', 'yes'], words)
  return folder / family


@dataclasses.dataclass(frozen=True)
class Case:
  """A model that trained, or had noise for training.

  Attributes:
    model: It.
    experiment: What made it.
    algorithm: The method.
    state: What the run ended with.
    context: What a folder says besides.
  """

  model: models.Model
  experiment: config.Experiment
  algorithm: Any
  state: server.ServerState
  context: formats.Context


def make(
  weights: pathlib.Path | str,
  tune: str = 'lora',
  kind: str = '',
  **changes: Any,
) -> Case:
  """Makes a model of noise on a base.

  Args:
    weights: The base.
    tune: What trains.
    kind: Of the task, 'classification' by default.
    **changes: Fields of the experiment's sections; `method` is one.
  """
  name = changes.pop('method', 'all_large')
  loaded = pretrained.load_pretrained(str(weights), '', SIZE)
  is_llama = isinstance(loaded.config, sizes.DecoderConfig)
  e = tiny.experiment(
    name,
    **{
      'model': {'weights': str(weights), 'tune': tune, 'prompt_tokens': NUM},
      'lora': {
        'targets': _LLAMA_TARGETS if is_llama else _IMAGE_TARGETS,
        'rank': 3,
        'alpha': 4.0,
      },
      'rank': {'ranks': (3,)},
      'fedadapter': {'rank': 3, 'branches': 2},
      'data': {'image_size': SIZE, 'lengths': (8,)},
      'clients': {'budgets': (loaded.config.depth,)},
      **changes,
    },
  )
  kind = kind or 'classification'
  outputs = {'span': 2, 'regression': 1, 'next_token': 270}.get(kind, 3)
  task = tasks.Task(kind, outputs)
  tier = tiers.Tier('model', loaded, {'layer': loaded.config.depth})
  widths = tuned.axis_sizes(tuned.with_trained(loaded.config, e.model), e.data)
  budgets = tuple(map(int, e.clients.budgets))
  algorithm = method.build(
    e, [tier], task, {**widths, 'tier:model': loaded.config.depth}, budgets
  )
  memory = algorithm.aggregator.init(algorithm.model.theta)
  if algorithm.aggregator.frozen_delta(memory):
    memory = tiny.noise(memory, 4, 0.05)
  else:
    memory = ()
  clients = {}
  if algorithm.client.state:
    clients = {2: tiny.noise(algorithm.client.state(2), 5, 0.3)}
  theta = tiny.noise(algorithm.model.theta, 3, 0.3)
  state = server.ServerState(theta, (), memory, clients)
  known = learned.Learned(
    task, LABELS if outputs == 3 else (), ('a',), 4, budgets, 10, 10
  )
  context = formats.Context(known, loaded.tokenizer, 8, loaded)
  ends = models.take_apart(algorithm, state)
  return Case(next(iter(ends.values())), e, algorithm, state, context)


def inputs(config: Any) -> Any:
  """Returns two examples, one of them padded."""
  rng = np.random.default_rng(1)
  if isinstance(config, sizes.ViTConfig):
    side = config.image_size
    return rng.integers(0, 256, (2, side, side, 3), np.uint8)
  ids = rng.integers(5, 40, (2, 8)).astype(np.int32)
  ids[1, 5:] = config.pad
  types = (np.arange(8) > 3) * (getattr(config, 'types', 0) > 1)
  return Tokens(ids, np.tile(types, (2, 1)).astype(np.int32))


def _apart(config: Any) -> contextlib.AbstractContextManager[None]:
  """Compiles operations one by one, each once for all models.

  JAX has no loop of no steps then, as a model of one block has.
  """
  return jax.disable_jit(config.depth > 1)


def run(model: models.Model) -> np.ndarray:
  """Returns our logits, from the parameters apart as they trained."""
  found = flax_folder.build(model.config, model.adapters)
  whole = found.merge(*jax.device_put((model.frozen, model.theta)))
  with _apart(model.config):
    return np.asarray(
      whole(inputs(model.config), np.arange(model.config.depth))
    )


def outside(
  folder: pathlib.Path, form: str, config: Any, kind: str = 'classification'
) -> np.ndarray:
  """Returns the logits of what others load."""
  if form == 'flax':
    with _apart(config):
      return np.asarray(flax_folder.load_model(folder)(inputs(config)))
  auto = _auto(config, kind)
  if form == 'hf':
    model, info = auto.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
  else:
    said = json.loads((folder / 'adapter_config.json').read_text())
    labels = {'num_labels': config.num_classes} if config.num_classes else {}
    place = said['base_model_name_or_path']
    base = auto.from_pretrained(place, ignore_mismatched_sizes=True, **labels)
    model = peft.PeftModel.from_pretrained(base, folder)
  with torch.no_grad():
    out = model.eval()(**torch_inputs(folder, config, inputs(config)))
  if 'start_logits' in out:
    return np.stack([out.start_logits, out.end_logits], -1)
  return out.logits.numpy()


def _auto(config: Any, kind: str) -> Any:
  if isinstance(config, sizes.ViTConfig):
    return transformers.AutoModelForImageClassification
  return {
    'span': transformers.AutoModelForQuestionAnswering,
    'next_token': transformers.AutoModelForCausalLM,
  }.get(kind, transformers.AutoModelForSequenceClassification)


def torch_inputs(
  folder: pathlib.Path, config: Any, found: Any
) -> dict[str, Any]:
  """Returns examples as torch reads them: pictures by the folder's processor."""
  if isinstance(config, sizes.ViTConfig):
    auto = transformers.AutoImageProcessor.from_pretrained(folder)
    pictures = [Image.fromarray(pixels) for pixels in found]
    return dict(auto(pictures, return_tensors='pt'))
  mask = (found.ids != config.pad).astype(np.int64)
  kwargs = {'input_ids': found.ids, 'attention_mask': mask}
  if getattr(config, 'types', 0):
    kwargs['token_type_ids'] = found.types
  return {name: torch.tensor(value) for name, value in kwargs.items()}


@functools.cache
def base(root: pathlib.Path, family: str) -> pathlib.Path:
  """Writes a family's base once."""
  return write_base(root, family)


def difference(
  case: Case, form: str, folder: pathlib.Path, kind: str = ''
) -> float:
  """Returns the largest difference of logits.

  Raises:
    ValueError: The model cannot leave in this format.
  """
  model, task = case.model, case.context.learned.task
  if why := formats.FORMATS[form].why_not(model, task):
    raise ValueError(why)
  folder.mkdir(parents=True, exist_ok=True)
  formats.FORMATS[form].write(model, case.context, folder)
  want = run(model)
  assert np.abs(want).max() > 0.05
  got = outside(folder, form, model.config, kind or 'classification')
  if kind in ('span', 'next_token'):
    config: Any = model.config
    real = inputs(config).ids != config.pad
    if form == 'peft' and model.config.prompts:
      got = got[:, model.config.prompts :]
    got, want = got[real], want[real]
  elif form == 'peft' and model.config.prompts:
    # There transformers finds no padding, which the second text has.
    got, want = got[:1], want[:1]
  return float(np.abs(got - want).max())
