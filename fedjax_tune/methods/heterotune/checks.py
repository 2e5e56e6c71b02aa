"""What HeteroTune refuses before data are read."""

from collections.abc import Mapping

from fedjax_tune import config
from fedjax_tune.methods.heterotune import membership
from fedjax_tune.models import tiers


def check(
  experiment: config.Experiment,
  sizes: Mapping[str, int],
  budgets: tuple[int, ...],
) -> None:
  """Checks the options.

  Args:
    experiment: The configuration.
    sizes: For each tier, under `tier_axis`, its number of blocks.
    budgets: One per client. If they are given, for other methods of the same
      experiment, they must agree with the tiers.

  Raises:
    ValueError: Options contradict each other.
  """
  names = tiers.names(experiment.tiers)
  _check(experiment, names)
  if len(budgets) < len(names):
    raise ValueError(
      f'tiers.weights={experiment.tiers.weights} must be at most '
      f'{len(budgets)}, the number of clients.'
    )
  each = membership.make_tiers(experiment, sizes, len(budgets))
  depths = tuple(each.held[name]['layer'] for name in each.of_client)
  if experiment.clients.budgets and budgets != depths:
    raise ValueError(
      f'clients.budgets={experiment.clients.budgets} must be () with '
      'method=heterotune, or the blocks of each tier, which clients take in '
      'turn.'
    )


def _check_shared(experiment: config.Experiment) -> None:
  """Raises a ValueError if tiers could not use what they share."""
  tune, head = experiment.model.tune, experiment.tiers.head
  cfg = experiment.fedadapter
  if tune != 'adapter' and (tune, head) not in (
    ('head', 'common'),
    ('head', 'common_any'),
  ):
    raise ValueError(
      f"model.tune={tune!r} must be 'adapter' with method=heterotune, or 'head'"
      f" with tiers.head='common'; tiers.head={head!r}."
    )
  if tune == 'head':
    if experiment.heterotune.reading != 'nested':
      raise ValueError(
        f'heterotune.reading={experiment.heterotune.reading!r} must be'
        " 'nested' with model.tune='head': there are no branches."
      )
    return
  if cfg.projections != 'free' and cfg.placement != 'parallel':
    raise ValueError(
      f"fedadapter.placement={cfg.placement!r} must be 'parallel' with"
      f' fedadapter.projections={cfg.projections!r}.'
    )
  if cfg.projections == 'alternating':
    _check_turns(experiment)
  if head == 'common' and cfg.projections == 'free':
    raise ValueError(
      "tiers.head='common' must be 'own' with fedadapter.projections='free':"
      ' each tier would turn its features its own way, and the head could not'
      " follow. tiers.head='common_any' does it all the same."
    )


def _check_turns(experiment: config.Experiment) -> None:
  """Raises a ValueError if parts cannot train in turn."""
  local = experiment.local
  if not experiment.heterotune.share:
    raise ValueError(
      'heterotune.share=False must be True with fedadapter.projections='
      "'alternating': nothing shared would take turns with what is not."
    )
  if local.steps == 1:
    raise ValueError(
      "local.steps=1 must be at least 2 with fedadapter.projections='alternating':"
      ' a first step trains what is shared, a second one what is not.'
    )


def _check(experiment: config.Experiment, each: tuple[str, ...]) -> None:
  """Raises a ValueError for fields that contradict each other."""
  options = experiment.heterotune
  _check_shared(experiment)
  joins = experiment.tiers.joins
  if joins and min(joins) > 0:
    raise ValueError(
      f'tiers.joins={joins} must have a 0: somebody takes part in round 0.'
    )
  if not options.share and (options.cmga, options.reading) != ('off', 'nested'):
    raise ValueError(
      f'heterotune.share=False leaves nothing for heterotune.cmga='
      f'{options.cmga!r} and reading={options.reading!r}; they must be '
      "'off' and 'nested'."
    )
  if options.mapping == 'index' and (options.sites or not options.every_block):
    raise ValueError(
      f'heterotune.sites={options.sites} and every_block={options.every_block}'
      " must be 0 and True with heterotune.mapping='index': each block has a"
      ' site of its own.'
    )
  if options.personal and not options.share:
    raise ValueError(
      'heterotune.personal=True must be False with heterotune.share=False: nobody'
      ' would send anything.'
    )
  own, frozen = options.reading == 'own', options.foreign == 'frozen'
  if own and options.branches:
    raise ValueError(
      f'heterotune.branches={options.branches} must be () with heterotune.'
      "reading='own': all tiers have all branches, one of each tier."
    )
  if own and frozen and options.cmga != 'off':
    raise ValueError(
      f"heterotune.cmga={options.cmga!r} must be 'off' with heterotune."
      "reading='own' and foreign='frozen': no two tiers train one branch."
    )
  if not own and not frozen:
    raise ValueError(
      f"heterotune.foreign={options.foreign!r} must be 'frozen' but with "
      "heterotune.reading='own'."
    )
  if options.branches and len(options.branches) != len(each):
    raise ValueError(
      f'heterotune.branches={options.branches} must have {len(each)} numbers, '
      'one for each of tiers.weights.'
    )
  pairs = set(zip(each, options.branches, strict=False))
  if len(pairs) > len(set(each)):
    raise ValueError(
      f'heterotune.branches={options.branches} must be alike where '
      'tiers.weights, depth and width are.'
    )
