"""A second Ctrl-C ends a command at once, whatever it is waiting for."""

import os
import signal
import threading

from rich import console as rich_console

from fedjax_tune import endings

from . import start


def watch(console: rich_console.Console) -> None:
  """Tells the user what happens after the first signal; ends at the second.

  Python handles signals only between two of its own steps, and there are none
  while the device computes a round. So a thread waits for signals.

  Args:
    console: Where to print.
  """
  come, sent = os.pipe()
  os.set_blocking(sent, False)
  signal.set_wakeup_fd(sent, warn_on_full_buffer=False)
  threading.Thread(target=_wait, args=(come, console), daemon=True).start()


def _wait(come: int, console: rich_console.Console) -> None:
  os.read(come, 1)
  console.print(
    'Stopping. A round that is under way is finished and saved first; a second'
    ' signal ends at once.',
    highlight=False,
    soft_wrap=True,
  )
  os.read(come, 1)
  console.show_cursor(True)
  start.leave(
    endings.Interrupted(
      'ended at once; the last checkpoint is where --resume goes on.'
    )
  )
