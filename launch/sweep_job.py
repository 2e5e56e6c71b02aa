"""What a Slurm job of a sweep does on its node: it starts or resumes a run.

Submitit writes a `Job` to a file, and reads and calls it on the node. Shortly
before the job's time is over submitit calls `checkpoint`, and queues what that
returns.
"""

from collections.abc import Sequence
import dataclasses
import importlib
import os
import signal
import subprocess
from typing import Any

from .sweep_plan import PlannedRun

# Of a run that was asked to stop, and has saved what it had done.
_SAVED = 4


@dataclasses.dataclass
class Job:
  """The job of one run of a sweep.

  Attributes:
    run: The run.
    command: The run's command.
    resuming: Flags that are added if the run has begun.
  """

  run: PlannedRun
  command: Sequence[str]
  resuming: Sequence[str] = ('--resume',)

  def __call__(self) -> None:
    """Trains until the run is finished.

    Raises:
      RuntimeError: The run ended before that.
    """
    if self.run.finished:
      return  # It was asked to stop when it was about to end.
    number = int(os.environ.get('SLURM_PROCID', '0'))
    hosts = int(os.environ.get('SLURM_NTASKS', '1'))
    command = [*self.command, *(self.resuming if self.run.begun else ())]
    command += ['--distributed'] if hosts > 1 else []
    self.run.workdir.mkdir(parents=True, exist_ok=True)
    log = self.run.log.with_suffix(f'.{number}.txt') if number else self.run.log
    with log.open('ab') as file:
      # The signal by which Slurm reaches submitit may reach all processes.
      self._process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=file,
        stderr=file,
        env=dict(os.environ, PYTHONUNBUFFERED='1'),
        preexec_fn=_deaf,
      )
    status = _end(self._process)
    # Of several hosts the first one has the run queued again.
    if status and not (number and status == _SAVED):
      raise RuntimeError(f'{self.run.name}: exit status {status}; see {log}')

  def checkpoint(self) -> Any:
    """Makes the run save and stop, and returns what to queue again.

    Returns:
      A `DelayedSubmission`; None if the run failed and nothing is queued.
    """
    self._process.terminate()
    if _end(self._process) not in (0, _SAVED, -signal.SIGTERM):
      return None
    helpers = importlib.import_module('submitit.helpers')
    return helpers.DelayedSubmission(Job(self.run, self.command, self.resuming))


def _deaf() -> None:
  for name in ('SIGUSR1', 'SIGUSR2'):
    signal.signal(getattr(signal, name), signal.SIG_IGN)


def _end(process: subprocess.Popen[bytes]) -> int:
  """Waits for a process for which a signal handler may wait too."""
  # Popen.wait holds a lock meanwhile, for which the handler would wait forever.
  os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
  return process.wait()
