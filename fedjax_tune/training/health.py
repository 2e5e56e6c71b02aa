"""Which updates numbers that are not finite void, and when they end a run."""

from collections.abc import Iterable, Sequence

import jax
import numpy as np

from fedjax_tune import endings
from fedjax_tune.engine import finite
from fedjax_tune.engine.algorithm import layer_ids
from fedjax_tune.engine.plan import RoundPlan
from fedjax_tune.report import writer
from fedjax_tune.typing import Tree


def rejected(
  plan: RoundPlan, flags: Sequence[np.ndarray]
) -> tuple[list[int], np.ndarray]:
  """Returns which clients of a round were left out, and which counted.

  Args:
    plan: The round.
    flags: For each slab of the round which clients were left out, bool [C].

  Returns:
    Client ids, sorted, and for each layer how many of the others hold it.
  """
  clients, owners = [], np.array(plan.owners)
  for slab, flag in zip(plan.slabs, flags, strict=True):
    for i in np.flatnonzero(flag):
      clients.append(int(slab.ids[i]))
      held = layer_ids(jax.tree.map(lambda at, i=i: at[i], slab.held))
      np.subtract.at(owners, held, 1)
  return sorted(clients), owners


def check_state(state: Tree, when: str) -> None:
  """Refuses a server's state that is not finite.

  Args:
    state: The server's state.
    when: Which state it is, for the message.

  Raises:
    Diverged: Some number is NaN or infinite.
  """
  if names := finite.where_not(state):
    more = f' and {len(names) - 1} more' if len(names) > 1 else ''
    raise endings.Diverged(
      f'{when}: {names[0]}{more} of the server must be finite. Checkpoints'
      ' before that are as they were.'
    )


def check_progress(lines: str, clients: Iterable[int], *, over: bool) -> None:
  """Ends a run that cannot go on because no client's update is finite.

  A round without any update changes nothing, and other clients may do better.
  But once every client has been left out since the server last moved, none can
  be expected to succeed.

  Args:
    lines: Lines of `metrics.jsonl`, one per round, including the last round.
    clients: The clients that may take part.
    over: Whether that was the last round.

  Raises:
    Diverged: All of them were left out, or no update counted in any round.
  """
  rows = writer.parse(lines)
  failed: set[int] = set()
  begin = len(rows)
  while begin and rows[begin - 1].get('train/clients') == 0:
    begin -= 1
    failed |= set(rows[begin]['train/rejected_clients'])
  if failed and (failed.issuperset(clients) or (over and begin == 0)):
    last = rows[-1]['round'] + 1
    when = (
      f'round {last}'
      if begin + 1 == len(rows)
      else (f'rounds {rows[begin]["round"] + 1} to {last}')
    )
    raise endings.Diverged(
      f'{when}: no client sent finite numbers, of clients'
      f' {", ".join(map(str, sorted(failed)))}. Training diverges; try a smaller'
      ' local.lr, or a local.clip_norm above 0.'
    )
