"""The commands; the only place that knows absl flags."""

import os
import signal
import sys
import types


def end_at_once(number: int, frame: types.FrameType | None) -> None:
  """Ends the process at Ctrl-C, in one line and with its status."""
  del number, frame
  os.write(2, b'error: ended by Ctrl-C.\n')
  os._exit(4)


# A command's imports take seconds, during which Python would answer Ctrl-C with
# a traceback, or lose it in a callback. '-m': a command is about to start.
if sys.argv[:1] == ['-m'] and (
  signal.getsignal(signal.SIGINT) is signal.default_int_handler
):
  signal.signal(signal.SIGINT, end_at_once)
