"""The typed configuration of an experiment.

An experiment file in `experiments/` returns one `Experiment`. The dataclasses
are plain (not frozen) because absl's config flags write into them; nothing
below `launch/` changes them. Every default stands here and nowhere else.
"""

import dataclasses


@dataclasses.dataclass
class Model:
  """The foundation model.

  Attributes:
    weights: A packaged checkpoint ('dinov2_vits14'), a random preset
      ('random:vit_tiny'), or the path of a Hugging Face folder.
    dtype: Compute type of the frozen blocks, 'float32' or 'bfloat16';
      adapters and sums stay float32.
    remat: Recompute each block in the backward pass; less memory, more time.
  """

  weights: str = 'dinov2_vits14'
  dtype: str = 'float32'
  remat: bool = False


@dataclasses.dataclass
class Lora:
  """Low-rank adapters; the defaults are those of FedRA's authors."""

  rank: int = 8
  alpha: float = 8.0
  dropout: float = 0.1
  targets: tuple[str, ...] = ('attn.proj', 'mlp.fc2')
  patch_embed: bool = True


@dataclasses.dataclass
class Data:
  """The data set.

  Attributes:
    name: 'emoji_styles', 'domainnet', 'nico', or any prepared TFDS set.
    data_dir: Where prepared data and weights lie; '' is the user's cache.
    image_size: Pixels of a side, a multiple of the model's patch size.
    domains: Which domains, in this order; () takes all that the set has.
    num_classes: Keep labels below this number; 0 keeps all.
    normalization: Channel statistics: 'imagenet', 'clip' or 'half'; '' takes
      those that the weights were trained with.
  """

  name: str = 'emoji_styles'
  data_dir: str = ''
  image_size: int = 56
  domains: tuple[str, ...] = ()
  num_classes: int = 0
  normalization: str = ''


@dataclasses.dataclass
class Clients:
  """Who the clients are: their data, their budgets, who takes part.

  Attributes:
    partition: 'iid', 'dirichlet', 'pathological', 'quantity', 'domain' or
      'domain_dirichlet' (Dirichlet over labels inside each domain).
    count: Number of clients; with a domain partition, clients per domain.
    alpha: Concentration of the Dirichlet and quantity partitions.
    classes_per_client: Of the pathological partition.
    min_examples: Least number of examples of any client.
    divide_objects: Give each object (a name shared by images of several
      domains) to the clients of one domain only.
    budgets: Transformer blocks that a client can hold, one number per client
      or per domain.
    cohort: 'one_per_domain' or 'uniform'.
    cohort_size: Clients a round when the cohort is uniform.
    seed: Seed of the partition, apart from the run's seed.
  """

  partition: str = 'domain'
  count: int = 1
  alpha: float = 0.5
  classes_per_client: int = 2
  min_examples: int = 10
  divide_objects: bool = False
  budgets: tuple[int, ...] = (12, 10, 8, 6, 4, 3)
  cohort: str = 'one_per_domain'
  cohort_size: int = 6
  seed: int = 0


@dataclasses.dataclass
class Local:
  """A client's local training.

  Attributes:
    optimizer: 'sgd', 'adam' or 'adamw'; its state is fresh every round.
    steps: Local steps; 0 derives them from `epochs`.
    epochs: Passes over the client's data when `steps` is 0.
    equal_steps: With epochs, cut everyone to the shortest client's number of
      batches plus one, as FedRA's authors do (main.py, client.py).
    clip_norm: Largest global gradient norm; 0 turns clipping off.
    prox: FedProx coefficient mu (arXiv 1812.06127); 0 turns it off.
    decay: The learning rate of round t is lr * decay**t.
  """

  optimizer: str = 'sgd'
  lr: float = 0.01
  momentum: float = 0.9
  weight_decay: float = 1e-5
  clip_norm: float = 10.0
  batch_size: int = 32
  steps: int = 8
  epochs: int = 1
  equal_steps: bool = True
  prox: float = 0.0
  decay: float = 1.0


@dataclasses.dataclass
class Server:
  """The server's step on the mean delta.

  Attributes:
    optimizer: 'fedavg', 'fedavgm', 'fedadam', 'fedyogi' or 'fedadagrad'
      (arXiv 2003.00295).
    momentum: Of fedavgm, and beta1 of the adaptive ones.
    beta2: Second-moment decay of fedadam and fedyogi.
    eps: tau of the adaptive ones.
    weighting: 'uniform' (FedRA's authors) or 'examples'.
  """

  optimizer: str = 'fedavg'
  lr: float = 1.0
  momentum: float = 0.9
  beta2: float = 0.99
  eps: float = 1e-3
  weighting: str = 'uniform'


@dataclasses.dataclass
class Engine:
  """How clients of one signature run on the device.

  Attributes:
    mode: 'map' (one by one), 'chunk', 'vmap' (all at once), or 'auto', the
      measured best of the device.
    chunk: Clients at a time in mode 'chunk'.
    slab: Clients in one call; 0 derives it from the cohort.
    devices: Devices among which the clients of a slab are split; 0 is all.
    compilation_cache: Keep compiled programs in the data folder.
  """

  mode: str = 'auto'
  chunk: int = 2
  slab: int = 0
  devices: int = 0
  compilation_cache: bool = True


@dataclasses.dataclass
class Fedra:
  """FedRA; `coverage_repair` redraws rows until every layer has an owner."""

  coverage_repair: bool = False


@dataclasses.dataclass
class Inclusivefl:
  """InclusiveFL; variant 'published' or 'fedra_port' (plain layer mean).

  Attributes:
    beta: Share of the next larger size in the step of a size's top block, in
      [0, 1]; only of the published variant.
  """

  variant: str = 'published'
  beta: float = 0.2


@dataclasses.dataclass
class Depthfl:
  """DepthFL; variant 'published' or 'fedra_port'.

  Attributes:
    ramp_rounds: Rounds until the distillation has its full weight; 0 takes
      the variant's, 300 or 500.
    evaluate: 'ensemble' of all exits or 'last' exit; '' takes the variant's.
  """

  variant: str = 'published'
  ramp_rounds: int = 0
  evaluate: str = ''


@dataclasses.dataclass
class Experiment:
  """Everything that defines a run; equal experiments give equal runs."""

  method: str = 'fedra'
  rounds: int = 100
  seed: int = 0
  eval_every: int = 5
  checkpoint_every: int = 10
  model: Model = dataclasses.field(default_factory=Model)
  lora: Lora = dataclasses.field(default_factory=Lora)
  data: Data = dataclasses.field(default_factory=Data)
  clients: Clients = dataclasses.field(default_factory=Clients)
  local: Local = dataclasses.field(default_factory=Local)
  server: Server = dataclasses.field(default_factory=Server)
  engine: Engine = dataclasses.field(default_factory=Engine)
  fedra: Fedra = dataclasses.field(default_factory=Fedra)
  inclusivefl: Inclusivefl = dataclasses.field(default_factory=Inclusivefl)
  depthfl: Depthfl = dataclasses.field(default_factory=Depthfl)
