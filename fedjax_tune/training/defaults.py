"""Values of the fields that an experiment leaves to data set and model.

`OPEN` lists these fields, each with the rule that decides it. `resolve` applies
the rules once, before anything else in a run; the modules below read plain
values, and `config.json` keeps them.
"""

from collections.abc import Callable, Mapping, Sequence
import copy
import functools
import math

import numpy as np

from fedjax_tune import config, plugins
from fedjax_tune.config.field_rules import AUTO
from fedjax_tune.data import arrays
from fedjax_tune.models import peft, sizes, tiers
from fedjax_tune.training.known import Known

# As many clients as FedRA's authors have, where nothing says how many.
_CLIENTS = 6
# Of FedRA's authors, whose model is a ViT; and peft's for Llama.
_ENCODER, _DECODER = ('attn.proj', 'mlp.fc2'), ('attn.q', 'attn.v')
# DINOv2's training ends at 518 pixels, but it is used at 224.
_DINOV2_SIZE = 224
# Of texts, where nothing reads it.
_NO_PICTURES = 56
# Of texts, in tokens; and the least that the field takes.
_LENGTHS, _SHORTEST = (32, 64, 128), 8
# A share that is written with a few digits is meant.
_DUST = 1e-6


def _image_size(e: config.Experiment, known: Known) -> int:
  del e
  if known.texts:
    return _NO_PICTURES
  if known.data:
    return known.data.train.inputs.shape[1]
  own_sizes, patches = [], []
  for model in known.models:
    if isinstance(model, sizes.ViTConfig):
      dinov2 = model.family == 'dinov2'
      most = _DINOV2_SIZE if dinov2 else model.image_size
      own_sizes.append(min(model.image_size, most))
      patches.append(model.patch)
  if not patches:
    return _NO_PICTURES
  whole = math.lcm(*patches)
  return math.ceil(max(own_sizes) / whole) * whole


def _lengths(e: config.Experiment, known: Known) -> tuple[int, ...]:
  """Leaves out lengths beyond the positions of any model."""
  most = math.inf
  for model in known.models:
    sized = peft.with_trained(model, e.model)
    if not isinstance(sized, sizes.ViTConfig):
      most = min(most, max(_SHORTEST, sized.max_tokens))
  return tuple(n for n in _LENGTHS if n <= most) or (int(most),)


def _targets(e: config.Experiment, known: Known) -> tuple[str, ...]:
  if e.model.tune != 'lora':
    return _ENCODER  # Nothing reads it.
  decoder = isinstance(known.models[0], sizes.DecoderConfig)
  return _DECODER if decoder else _ENCODER


def _partition(e: config.Experiment, known: Known) -> str:
  del e
  if known.domains > 1:
    return 'domain'
  if known.has_clients:
    return 'natural'
  return 'dirichlet' if known.has_classes else 'iid'


def _by_domain(e: config.Experiment) -> bool:
  return e.clients.partition.startswith('domain')


def _count(e: config.Experiment, known: Known) -> int:
  if known.parts is not None:
    return len(known.parts) // (known.domains if _by_domain(e) else 1)
  if _by_domain(e):
    return 1
  if known.several:
    return max(_CLIENTS, len(e.tiers.weights))
  return len(e.clients.budgets) or _CLIENTS


def _cohort(e: config.Experiment, known: Known) -> str:
  del known
  return 'one_per_domain' if _by_domain(e) else 'uniform'


def _cohort_size(e: config.Experiment, known: Known) -> int:
  if e.clients.cohort != 'uniform':
    return _CLIENTS  # Nothing reads it.
  domains = known.domains if _by_domain(e) else 1
  return min(_CLIENTS, e.clients.count * domains)


def _budgets(e: config.Experiment, known: Known) -> tuple[float, ...]:
  """Turns shares into blocks, as many as domains or clients can take."""
  shares = e.clients.budgets
  if known.several and shares == config.Clients().budgets:
    return ()  # The tiers say it.
  by_domain = _by_domain(e)
  takers = known.domains if by_domain else e.clients.count
  clients = takers * e.clients.count if by_domain else takers
  if len(shares) > takers and len(shares) != clients:
    at = np.linspace(0, len(shares) - 1, takers).round().astype(int)
    shares = tuple(shares[i] for i in at)
  elif by_domain and len(shares) < takers:
    shares = tuple(shares[i % len(shares)] for i in range(takers))
  return tuple(blocks(share, known.depth) for share in shares)


def _projections(e: config.Experiment, known: Known) -> str:
  """Says 'aligned' where models that differ share cores.

  If the user has divided the examples, none may be left for everyone to see.
  """
  shares = known.several and e.heterotune.share and e.model.tune == 'adapter'
  differ = shares and len(set(tiers.names(e.tiers))) > 1
  shown = known.parts is None or e.tiers.public
  may = e.fedadapter.placement != 'sequential'
  return 'aligned' if differ and shown and may else 'free'


def _placement(e: config.Experiment, known: Known) -> str:
  del known
  return 'sequential' if e.fedadapter.projections == 'free' else 'parallel'


def _head(e: config.Experiment, known: Known) -> str:
  free = e.fedadapter.projections == 'free' and e.model.tune != 'head'
  return 'common' if known.several and not free else 'own'


def blocks(share: float, depth: int) -> int:
  """Returns the nearest number of blocks, the lower of two, but at least 1.

  >>> [blocks(share, 6) for share in (1.0, 5 / 6, 2 / 3, 0.5, 1 / 3, 0.25, 0.05)]
  [6, 5, 4, 3, 2, 1, 1]
  """
  return max(1, math.ceil(share * depth - 0.5 - _DUST))


# Field -> what leaves it open, and what it then is, given those before it.
OPEN: dict[str, tuple[object, Callable[[config.Experiment, Known], object]]] = {
  'data.image_size': (0, _image_size),
  'data.lengths': ((), _lengths),
  'lora.targets': ((AUTO,), _targets),
  'fedadapter.projections': (AUTO, _projections),
  'fedadapter.placement': (AUTO, _placement),
  'tiers.head': (AUTO, _head),
  'clients.partition': (AUTO, _partition),
  'clients.count': (0, _count),
  'clients.cohort': (AUTO, _cohort),
  'clients.cohort_size': (0, _cohort_size),
  'clients.budgets': (config.Clients().budgets, _budgets),
}


def resolve(
  experiment: config.Experiment,
  data: arrays.Arrays | None = None,
  parts: Sequence[np.ndarray] | None = None,
) -> config.Experiment:
  """Returns a checked experiment with no field left open.

  Args:
    experiment: The configuration; it stays as it is.
    data: Its data, if they are in memory.
    parts: For each client its examples, if its user has divided them.

  Raises:
    ValueError, FileNotFoundError: A field is wrong, or the data or the weights
      that decide a field are missing.
  """
  plugins.check(experiment)
  made, known = copy.deepcopy(experiment), Known(experiment, data, parts)
  try:
    for path in left_open(experiment):
      _set(made, path, OPEN[path][1](made, known))
  except (ValueError, OSError) as error:
    lines = dict.fromkeys([str(error), *known.problems()])
    if len(lines) == 1:
      raise
    raise ValueError('\n'.join(lines)) from error
  if made != experiment:
    plugins.check(made)
  return made


def left_open(experiment: config.Experiment) -> list[str]:
  """Returns the fields that an experiment leaves open."""
  shares = any(isinstance(x, float) for x in experiment.clients.budgets)
  return [
    path
    for path, (mark, _) in OPEN.items()
    if (path == 'clients.budgets' and shares) or _get(experiment, path) == mark
  ]


def usual(
  experiment: config.Experiment, data: arrays.Arrays | None = None
) -> Mapping[str, object]:
  """Returns what each of these fields would be if only it were left open.

  Fields that depend on missing data or weights are not included.

  Args:
    experiment: A resolved experiment.
    data: Its data, if they are in memory.
  """
  found, known = {}, Known(experiment, data)
  for path, (mark, rule) in OPEN.items():
    alone = copy.deepcopy(experiment)
    _set(alone, path, mark)
    try:
      found[path] = rule(alone, known)
    except (ValueError, OSError):
      continue
  return found


def _get(experiment: config.Experiment, path: str) -> object:
  return functools.reduce(getattr, path.split('.'), experiment)


def _set(experiment: config.Experiment, path: str, value: object) -> None:
  section, name = path.split('.')
  setattr(getattr(experiment, section), name, value)
