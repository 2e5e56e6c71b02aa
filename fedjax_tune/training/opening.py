"""What a run prints and writes before its first round."""

from collections.abc import Sequence
import dataclasses
import pathlib

import numpy as np
from rich import console as rich_console

from fedjax_tune import endings, plugins
from fedjax_tune.config import unread
from fedjax_tune.costs import table
from fedjax_tune.data import arrays, groups
from fedjax_tune.report import writer as reporting
from fedjax_tune.training import aligned, defaults, identity, learned, resuming
from fedjax_tune.training import build as building
from fedjax_tune.training.run import Run


def tell_unread(
  setup: building.Setup,
  console: rich_console.Console,
  data: arrays.Arrays | None = None,
) -> None:
  """Prints options that nothing reads, and oddities of data and weights."""
  lines = unread.in_vain(
    setup.experiment,
    setup.train.lengths is None,
    plugins.registered(setup.experiment),
    defaults.usual(setup.experiment, data),
  )
  notes = (*setup.train.notes, *setup.test.notes, *setup.notes)
  for line in (*lines, *notes):
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def write(run: Run, classes: list[table.ClassCost], workdir: str) -> None:
  """Writes what is known before the first round.

  That is costs, partition, task, and what aligns different models.
  """
  place = pathlib.Path(workdir)
  reporting.write_text(place / 'costs.md', table.cost_markdown(classes))
  as_dicts = [dataclasses.asdict(row) for row in classes]
  reporting.write_json(place / 'costs.json', as_dicts)
  written = identity.partition(run.setup)
  reporting.write_json(place / resuming.PARTITION, written)
  known = dataclasses.asdict(learned.of(run.setup))
  reporting.write_json(place / learned.FILE, known)
  aligned.write(place, aligned.of(run.setup.algorithm))


def _client_names(setup: building.Setup) -> Sequence[str]:
  """Returns the data set's names of the clients; () if it has none."""
  train = setup.train
  if setup.experiment.clients.partition != 'natural' or train.groups is None:
    return ()
  return groups.names(train, setup.partition.indices)


def draw(setup: building.Setup, workdir: str) -> None:
  """Draws the partition; it takes a second, so call it where nothing waits."""
  path = pathlib.Path(workdir) / 'partition.png'
  if setup.train.class_names:
    # Here and not above: Matplotlib and SciPy take half a second.
    from fedjax_tune.report import partition_plot

    owned = setup.partition
    clients = partition_plot.Clients(
      owned.sizes(),
      np.array(setup.budgets),
      owned.domains,
      setup.train.domain_names,
      _client_names(setup) if len(owned) <= partition_plot.MOST_BARS else (),
    )
    with endings.storing(path):
      counts = owned.histogram(setup.train, clients.shown)
      partition_plot.plot_partition(
        counts, clients, setup.train.class_names, path
      )
