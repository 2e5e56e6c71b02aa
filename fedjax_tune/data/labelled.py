"""Describes the package's own sets of labelled texts to TFDS."""

from collections.abc import Sequence
from typing import Any

import tensorflow_datasets as tfds


def describe(
  builder: tfds.core.DatasetBuilder,
  classes: Sequence[str],
  *,
  features: dict[str, object] | None = None,
  **about: Any,
) -> tfds.core.DatasetInfo:
  """Returns the description of a set of texts with labels.

  Args:
    builder: The set's builder.
    classes: Names of the labels.
    features: Features of an example in addition to `text` and `label`.
    **about: Description, homepage, license and citation.
  """
  return tfds.core.DatasetInfo(
    builder=builder,
    features=tfds.features.FeaturesDict(
      {
        'text': tfds.features.Text(),
        'label': tfds.features.ClassLabel(names=classes),
        **(features or {}),
      }
    ),
    supervised_keys=('text', 'label'),
    **about,
  )
