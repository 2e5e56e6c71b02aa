r"""RaFFM with its authors' settings: GLUE, SQuAD, CIFAR and Flowers-102.

  python -m launch.prepare --dataset=glue/sst2 --data_dir=DIR
  python -m launch.train --config=experiments/raffm_authors.py:SET \
    --config.model.weights=FOLDER --config.data.data_dir=DIR --workdir=RUN

SET is one of `get_config`'s; FOLDER holds a Hugging Face model: for text
bert-base-uncased, roberta-base (batch 24), distilbert-base-uncased (48) or
bert-large-uncased-whole-word-masking (8); for images
google/vit-base-patch16-224 (the paper's time) or -in21k (released).

From the code of the paper's time (github.com/yusx-swapp/fedlib, demo/RaFFM):
100 clients, 10 % a round, equal random shares, AdamW, learning rate times
0.98 every five rounds; GLUE and SQuAD 3 local epochs, images 5 with 12 shots
a class and client. Left out: its early stopping, and in the image script the
decay by 0.95 from one local epoch to the next. The README of the released
code names Dirichlet 0.5 instead of equal shares
(`--config.clients.partition=dirichlet`). Nothing of this fits two CPU cores;
`python -m launch.inspect` tells what it needs.
"""

from fedjax_tune import config

_GLUE = ('sst2', 'mrpc', 'mnli', 'qqp', 'qnli', 'stsb', 'rte', 'cola')
_SQUAD = {'squad1': 'squad/v1.1', 'squad2': 'squad/v2.0'}
_IMAGES = {
  'cifar10': 'cifar10',
  'cifar100': 'cifar100',
  'flowers102': 'oxford_flowers102',
}


def get_config(name: str = 'sst2') -> config.Experiment:
  """Returns the experiment on one data set.

  Args:
    name: A task of GLUE ('sst2', ...), 'squad1', 'squad2', 'cifar10',
      'cifar100' or 'flowers102'.

  Raises:
    ValueError: It is none of these.
  """
  names = (*_GLUE, *_SQUAD, *_IMAGES)
  if name not in names:
    raise ValueError(f'SET={name!r} must be one of {", ".join(names)}.')
  if name in _IMAGES:
    return _image(_IMAGES[name])
  return _text(_SQUAD.get(name, f'glue/{name}'))


def _text(name: str) -> config.Experiment:
  squad = name.startswith('squad')
  lengths = (128, 256, 384) if squad else (32, 64, 128)
  experiment = _common(
    config.Data(name=name, lengths=lengths), 'bert-base-uncased'
  )
  experiment.rounds = 100 if squad else 50
  experiment.local = config.Local(
    optimizer='adamw',
    lr=2e-5,
    weight_decay=0.01,
    clip_norm=1.0,
    batch_size=24,
    steps=0,
    epochs=3,
    equal_steps=False,
    decay=0.98,
    decay_every=5,
  )
  return experiment


def _image(name: str) -> config.Experiment:
  experiment = _common(
    config.Data(name=name, image_size=224), 'vit-base-patch16-224'
  )
  experiment.clients.partition = 'k_shot'
  experiment.rounds = 100
  experiment.local = config.Local(
    optimizer='adam',
    lr=3e-5,
    weight_decay=0.0,
    clip_norm=0.0,
    batch_size=64,
    steps=0,
    epochs=5,
    equal_steps=False,
    decay=0.98,
    decay_every=5,
  )
  return experiment


def _common(data: config.Data, weights: str) -> config.Experiment:
  return config.Experiment(
    method='raffm',
    model=config.Model(weights=weights, tune='full'),
    data=data,
    clients=config.Clients(
      partition='iid',
      count=100,
      budgets=(),
      shots=12,
      cohort='uniform',
      cohort_size=10,
    ),
  )
