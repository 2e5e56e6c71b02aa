"""Six unequal clients tune one vision transformer: a first run in minutes.

Command: launch/quickstart (FedRA and AllSmall, then a table and a plot).
Device: 2 CPU cores. The clients are those of experiments/fedra_emoji.py.
"""

from experiments import fedra_emoji
from fedjax_tune import config


def get_config() -> config.Experiment:
  """Returns the experiment."""
  experiment = fedra_emoji.get_config('feature')
  experiment.rounds, experiment.eval_every = 30, 5
  experiment.eval_start = True
  return experiment
