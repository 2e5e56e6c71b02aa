"""Heads that come with a model, from our own export or from an adapter."""

from collections.abc import Sequence
import dataclasses
import pathlib
from typing import Any

import numpy as np

from fedjax_tune.data.tasks import Task
from fedjax_tune.models import backbone, foundation, layouts
from fedjax_tune.models import tensors as checking
from fedjax_tune.models.backbone import Pretrained
from fedjax_tune.typing import Path

# What marks folders that `launch.export` and `launch.deploy` have written.
EXPORTED, DEPLOYED = 'export.json', 'deploy.json'
# Heads of texts or pictures, and of tokens, as parts of a path.
_HEAD, _SPANS = 'head', 'qa_outputs'


def is_ours(folder: pathlib.Path) -> bool:
  """Whether this package wrote a model's folder, with a trained head."""
  return any((folder / mark).is_file() for mark in (EXPORTED, DEPLOYED))


def read(
  sizes: Any, found: dict[str, np.ndarray], source: str
) -> dict[Path, np.ndarray]:
  """Takes a head with any number of outputs from the tensors found.

  Args:
    sizes: Sizes of the pretrained model.
    found: Tensors under the names of a model with a head.
    source: Begins every message.
  """
  head: dict[Path, np.ndarray] = {}
  own = dataclasses.replace(sizes, num_classes=1)
  kinds = {_HEAD: own}
  if hasattr(sizes, 'span'):
    kinds[_SPANS] = dataclasses.replace(own, span=True)
  for kind, config in kinds.items():
    for path in backbone.variables(config):
      if not layouts.is_head(config, path) or path[0] == 'lm_head':
        continue
      ((name, *_),) = layouts.find_modules(config, path)
      if name in found:
        value = checking.check(name, found.pop(name), 'bias', source)
        place = (kind if path[0] == _HEAD else path[0], path[-1])
        head[place] = value.T if path[-1] == 'kernel' else value
  return head


def put(
  weights: Pretrained, task: Task, class_names: Sequence[str]
) -> Pretrained:
  """Adds a head that came with a model, if it has the same classes.

  Args:
    weights: The pretrained model, with its head apart.
    task: What is learned.
    class_names: The name of each label.
  """
  if not weights.head:
    return weights
  found, source = dict(weights.head), weights.head_source or weights.source
  if task.kind == 'span':
    found = {(_HEAD, n): x for (kind, n), x in found.items() if kind == _SPANS}
  kernel = found.get((_HEAD, 'kernel'), np.zeros((1, 0)))
  outputs = kernel.shape[1]
  named = tuple(class_names) or tuple(f'LABEL_{i}' for i in range(outputs))
  same = weights.labels is None or weights.labels == named
  if not same or outputs != task.num_outputs:
    note = f'{source}: its head is of other classes, so it is left.'
    return dataclasses.replace(weights, notes=(*weights.notes, note))
  embed = weights.config.embed
  if kernel.shape[0] == 2 * embed and not np.any(kernel[embed:]):
    # Of DINOv2, whose head could read the patches' mean, too.
    found[_HEAD, 'kernel'] = kernel[:embed]
  flat = foundation.flat(weights.params) | found
  note = f'{source}: its head of {outputs} outputs is kept.'
  return dataclasses.replace(
    weights, params=foundation.nest(flat), notes=(*weights.notes, note)
  )
