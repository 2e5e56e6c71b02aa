"""Turns a common head of tiers into an ordinary head of one model.

A common head reads the code z = (f - mean) A of features f (`common_head.py`), so
that its logits z K + b are f (A K) + (b - mean A K): a linear map of f.
"""

import dataclasses

import numpy as np

from fedjax_tune.deploy.models import Model
from fedjax_tune.models import foundation
from fedjax_tune.models.sizes import Config, DecoderConfig


def why_not(config: Config) -> str:
  """Says why no class of `transformers` has such a head; '' if a class has."""
  if not config.code:
    return ''
  if isinstance(config, DecoderConfig):
    return (
      'the head of a decoder in transformers lacks the bias of a common head'
    )
  if config.family in ('roberta', 'distilbert'):
    return (
      f'in transformers a {config.family} has a map before its head, which a'
      ' common head replaces'
    )
  return ''


def fold(model: Model) -> Model:
  """Returns a model whose head reads the model's features, not a code."""
  if not model.config.code:
    return model
  base, theta = foundation.flat(model.base), foundation.flat(model.theta)
  take = lambda tree, name: np.asarray(tree.pop(('head', name)), np.float64)
  mean, code = take(base, 'mean'), take(base, 'map')
  kernel, bias = take(theta, 'kernel'), take(theta, 'bias')
  whole = code @ kernel
  theta['head', 'kernel'] = whole.astype(np.float32)
  theta['head', 'bias'] = (bias - mean @ whole).astype(np.float32)
  return dataclasses.replace(
    model,
    config=dataclasses.replace(model.config, code=0),
    base=foundation.nest(base),
    theta=foundation.nest(theta),
  )
