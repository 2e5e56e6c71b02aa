"""The different models of a federation, as a configuration names them."""

from collections.abc import Mapping
import dataclasses
import pathlib

from fedjax_tune import config
from fedjax_tune.data import tokens
from fedjax_tune.models import adapter_start, pretrained, sizes


@dataclasses.dataclass(frozen=True)
class Tier:
  """A model of a federation.

  Attributes:
    name: Its name in tables and metrics.
    weights: The whole pretrained model.
    kept: How much of each of its axes the tier's clients have.
  """

  name: str
  weights: pretrained.Pretrained
  kept: Mapping[str, int]


def names(cfg: config.Tiers) -> tuple[str, ...]:
  """Names the tiers, in the order in which clients take them.

  A tier listed twice, to give it more clients, counts once.

  Raises:
    ValueError: There is no tier, a field has another number of values than
      `weights`, or two tiers would have the same name.
  """
  if not cfg.weights:
    raise ValueError(
      'tiers.weights=() must name the models of method=heterotune, such as'
      " ('minilm_l6', 'minilm_l3')."
    )
  for field in ('depth', 'width', 'joins'):
    values = getattr(cfg, field)
    if values and len(values) != len(cfg.weights):
      raise ValueError(
        f'tiers.{field}={values} must have {len(cfg.weights)} values, one for '
        'each of tiers.weights.'
      )
  depth = cfg.depth or (0,) * len(cfg.weights)
  width = cfg.width or (1.0,) * len(cfg.weights)
  named: dict[str, tuple[str, int, float]] = {}
  found = []
  for tier in zip(cfg.weights, depth, width, strict=True):
    name = _name(*tier)
    if named.setdefault(name, tier) != tier:
      raise ValueError(
        f'tiers.weights={cfg.weights} must have a last part of their own: '
        f'two tiers would be called {name!r}.'
      )
    found.append(name)
  return tuple(found)


def _name(weights: str, depth: int, width: float) -> str:
  stem = pathlib.Path(weights.removeprefix('random:')).name
  cut = (f'_d{depth}' if depth else '') + (f'_w{width:g}' if width < 1 else '')
  return stem + cut


def load(experiment: config.Experiment, data_dir: str) -> tuple[Tier, ...]:
  """Loads each model of a federation once.

  Raises:
    ValueError: See `names`; or a tier keeps more blocks than there are, or
      tiers read different kinds of data.
    FileNotFoundError, RuntimeError: See `pretrained.load_pretrained`.
  """
  cfg = experiment.tiers
  found: dict[str, Tier] = {}
  for i, name in enumerate(names(cfg)):
    if name not in found:
      depth = cfg.depth[i] if cfg.depth else 0
      width = cfg.width[i] if cfg.width else 1.0
      found[name] = _load(
        experiment, data_dir, cfg.weights[i], name, depth, width
      )
  reads_images = {
    isinstance(tier.weights.config, sizes.ViTConfig) for tier in found.values()
  }
  if len(reads_images) > 1:
    raise ValueError(
      f'tiers.weights={cfg.weights} must all read images, or all read text.'
    )
  return tuple(found.values())


def load_one(experiment: config.Experiment, data_dir: str) -> tuple[Tier]:
  """Loads `model.weights`, for methods with one model.

  It includes the adapter that the model starts from, if there is one.
  """
  tier = _load(experiment, data_dir, experiment.model.weights, 'model')
  if experiment.lora.init and experiment.model.tune == 'lora':
    weights = adapter_start.load(experiment.lora, tier.weights)
    tier = dataclasses.replace(tier, weights=weights)
  return (tier,)


def _load(
  experiment: config.Experiment,
  data_dir: str,
  weights: str,
  name: str,
  depth: int = 0,
  width: float = 1.0,
) -> Tier:
  loaded = pretrained.load_pretrained(
    weights, data_dir, experiment.data.image_size
  )
  full = dict(sizes.Axes.of(loaded.config))
  if depth > full['layer']:
    raise ValueError(
      f'tiers.depth: tier {name!r} must keep at most {full["layer"]} blocks, '
      f'all of {weights!r}.'
    )
  kept = {'layer': depth or full['layer']}
  for axis in ('heads', 'ffn') if width < 1 else ():
    kept[axis] = max(1, round(width * full[axis]))
  return Tier(name, loaded, kept)


def readers(tiers: tuple[Tier, ...]) -> dict[str, int]:
  """Returns the number of each tier's tokenizer; equal tokenizers share one."""
  known: list[tuple[object, ...]] = []
  found = {}
  for tier in tiers:
    folder, cfg = tier.weights.tokenizer, tier.weights.config
    reader: tuple[object, ...] = ()
    if folder is not None and not isinstance(cfg, sizes.ViTConfig):
      tokenizer = tokens.load(folder, cfg.vocab)
      split = tokenizer.encode_special_tokens
      reader = tokenizer.to_str(), split, cfg.pad
    if reader not in known:
      known.append(reader)
    found[tier.name] = known.index(reader)
  return found
