r"""FedRA on NICO++ with its authors' settings, in both of their skews.

  python -m launch.prepare --dataset=nico --source=NICO --data_dir=DIR
  python -m launch.train --config=experiments/fedra_nico.py:SKEW \
    --config.data.data_dir=DIR --config.model.weights=FOLDER --workdir=RUN

NICO is the folder of NICO++ with its official lists (fedjax_tune/data/nico.py
says how it is laid out); SKEW, FOLDER, the settings and their source are those
of fedra_domainnet.py, but for the data: six contexts as domains, 60 classes.

Expected with `feature`: the same re-run (FedBRICK, AAAI 2026, table 1; budgets
12/10/8/6/5/4, mean of 3 runs) has, over the domains, AllLarge 90.9 %, FedRA
86.8, InclusiveFL 81.2, DepthFL 79.5, and water the weakest domain. Not yet run
here at full length: minutes and spread are unknown. It needs a GPU;
`python -m launch.inspect` tells how large a one.
"""

from experiments import fedra_domainnet
from fedjax_tune import config


def get_config(skew: str = 'feature') -> config.Experiment:
  """Returns the experiment with the rounds and clients of one skew."""
  experiment = fedra_domainnet.get_config(skew)
  experiment.data = config.Data(
    name='nico', image_size=224, num_classes=60, normalization='clip'
  )
  return experiment
