"""The typed configuration of an experiment.

An experiment file in `experiments/` returns one `Experiment`. The dataclasses
are plain (not frozen) because absl's config flags write into them; nothing
below `launch/` changes them. Every default stands here or, if only one method
reads it, in `methods.py`, and nowhere else. Some leave a field open ('auto', 0,
shares of a model): `training/defaults.py` says what it is for each data set and
model, so that another one of these needs no other fields.
"""

import dataclasses
from typing import Any

from fedjax_tune.config import methods


def _section(kind: type) -> Any:
  """Gives each experiment a section of its own."""
  return dataclasses.field(default_factory=kind)


@dataclasses.dataclass
class Model:
  """The foundation model.

  Attributes:
    weights: A packaged checkpoint ('dinov2_vits14', 'minilm_l6', 'minilm_l3',
      'smollm2_135m'), a random preset ('random:vit_tiny'), or the path of a
      Hugging Face folder. One that launch.export wrote brings its head along,
      where that is of the data's classes.
    dtype: Type of the factors in products with frozen weights, and of these
      weights in memory: 'float32', or 'bfloat16', which is faster where the
      hardware multiplies it. Their sums, and all else (adapters, norms,
      attention, losses, optimizers), stay float32.
    remat: Recompute each block in the backward pass; less memory, more time.
    dropout: Rate of the backbone's own dropout while it trains: behind the
      embedding, of attention's weights, of what attention and the MLP add, and
      before a text's classifier, as in Hugging Face's models. BERT was
      pretrained with 0.1, a ViT with 0.
    tune: What trains with the head: 'lora' (adapters), 'adapter' (bottlenecks
      behind sublayers, section `fedadapter`), 'bitfit' (every bias,
      arXiv 2106.10199), 'prompt' (tokens behind the class token, or before
      a decoder's words, arXiv 2104.08691 and 2203.12119), 'prefix' (keys and
      values of every block, arXiv 2101.00190), 'full' (every parameter), or
      'head' (nothing else: a linear probe of the frozen model).
    prompt_tokens: How many tokens 'prompt' trains, or keys 'prefix'; the papers
      take 1 to 200.
  """

  weights: str = 'dinov2_vits14'
  tune: str = 'lora'
  prompt_tokens: int = 10
  dtype: str = 'float32'
  remat: bool = False
  dropout: float = 0.0


@dataclasses.dataclass
class Lora:
  """Low-rank adapters; the defaults are those of FedRA's authors.

  Attributes:
    rank: Inner width of each adapter; what it adds is B A x.
    alpha: What an adapter adds is multiplied by alpha / rank.
    dropout: Rate at which inputs of the adapters are dropped in training.
    targets: Which linear maps of every block are adapted; ('auto',) takes those
      of FedRA's authors, 'attn.proj' and 'mlp.fc2', and of a decoder those of
      peft, 'attn.q' and 'attn.v'.
    patch_embed: Adapt the convolution that embeds patches, too; texts have none.
    init: Where adapters start: a folder of Hugging Face's peft, such as
      launch.export writes, of the same rank, alpha and targets; '' starts anew.
  """

  rank: int = 8
  alpha: float = 8.0
  dropout: float = 0.1
  targets: tuple[str, ...] = ('auto',)
  patch_embed: bool = True
  init: str = ''


@dataclasses.dataclass
class Fedadapter:
  """The bottleneck of HeteroTune (arXiv 2411.16796); see `models/bottleneck.py`.

  The paper's own sizes and choices are not public; these are ours.

  Attributes:
    rank: Width of the bottleneck.
    branches: How many branches are mixed; method heterotune sets it by tier.
    after: Behind which sublayers there is one: 'mlp', 'attn'.
    core: What a branch is, 'mlp' or 'linear'.
    gating: Weights of the branches: 'static', 'token' or 'uniform'.
    placement: 'sequential', 'parallel', or 'auto': parallel with projections that
      are not free.
    scale: Factor of what is added.
    projections: What stands before and behind the cores, of method heterotune.
      'free' trains with them, in each tier by itself. 'aligned' is computed
      once, from public inputs (`tiers.public`), so that a core means the same
      in every tier, and never changes; 'aligned_start' trains from there, and
      'alternating', too, but in turn with what is shared, by local steps.
      'random' is drawn and never changes, to compare with. All but 'free' need
      placement 'parallel'. 'auto' is 'aligned' where method heterotune shares
      cores and placement may be parallel, else 'free'. That cores are shared is
      the paper's; how models that differ come to understand them, its public
      text does not say. A tier with few labels gained from nothing but a common
      space (`experiments/heterotune_transfer.py`).
    private: Give each tier a branch besides that it alone trains, between free
      projections, mixed with the shared ones by a learned share of each site.
  """

  rank: int = 32
  branches: int = 1
  after: tuple[str, ...] = ('mlp',)
  core: str = 'mlp'
  gating: str = 'static'
  placement: str = 'auto'
  scale: float = 1.0
  projections: str = 'auto'
  private: bool = False


@dataclasses.dataclass
class Data:
  """The data set.

  Attributes:
    name: A set of the package ('emoji_styles', 'movie_reviews', 'newsgroups',
      'friends', 'nico'), 'domainnet', any other prepared TFDS set, or your own
      files: 'folder:PATH' (CLASS/FILE, train/CLASS/FILE and test/CLASS/FILE, or
      DOMAIN/CLASS/FILE), 'csv:PATH', 'jsonl:PATH', 'parquet:PATH' or
      'npz:PATH'; a PATH may be a folder of such files.
    task: '' learns the set's labels; 'next_token' (decoders only) learns to
      predict each token of its texts; 'regression' has numbers as labels.
    label_column: Of a table of your own, as are the next four; '' takes one
      that is called as labels are: 'label', 'class', 'category', ...
    text_column: Of the text: 'text', 'review', ...; two with a comma between
      them are a pair, as 'premise,hypothesis'.
    image_column: Of the picture, or the path of its file from the table's
      folder: 'image', 'file', ...
    domain_column: Of its domain's name: 'domain'; '-' reads none.
    client_column: Whose it is, for clients.partition='natural': 'client',
      'user', ...; '-' reads none, where one is called so and has gaps.
    test_share: Of your own files without a split, how much of each class is
      held out to evaluate on.
    split_seed: Which examples that is.
    bad_rows: 'refuse' ends a run over a row or file that cannot be used;
      'leave_out' counts such ones, and goes on.
    data_dir: Where prepared data and weights lie; '' is the user's cache.
    image_size: Pixels of a side, a multiple of the model's patch size; 0 takes
      the size that arrays in memory have, or that the model is for (of DINOv2,
      which reads any, 224; of 'dinov2_vits14', with a CPU in mind, 56). Other
      pictures are resized to that square, bicubically, whatever the weights'
      own preprocessor does.
    domains: Which domains, in this order; () takes all that the set has.
    num_classes: Keep labels below this number; 0 keeps all.
    test_examples: How many test examples of each domain to evaluate, evenly
      spread over it; 0 takes all.
    lengths: Lengths in tokens to which texts are padded, ascending; longer
      texts are cut to the last. Each compiles a program of its own, or a branch
      of one: where clients run one by one, a batch runs in parts of like
      length, which pays the more the finer the lengths are. () takes 32, 64 and
      128, as far as the models have positions for them.
    validation: Share of each client's examples that nobody trains on, but which
      together are the validation split: `patience` and `keep_best` judge by it.
      0 has none.
    flip: Mirror pictures left to right in half of the local steps.
    crop: Shift pictures in local steps by up to so many pixels each way; what
      comes in at a border repeats the border.
    normalization: Channel statistics: 'imagenet', 'clip' or 'half'; '' takes
      those that the weights were trained with.
  """

  name: str = 'emoji_styles'
  task: str = ''
  label_column: str = ''
  text_column: str = ''
  image_column: str = ''
  domain_column: str = ''
  client_column: str = ''
  test_share: float = 0.2
  split_seed: int = 0
  bad_rows: str = 'refuse'
  data_dir: str = ''
  image_size: int = 0
  domains: tuple[str, ...] = ()
  num_classes: int = 0
  test_examples: int = 0
  lengths: tuple[int, ...] = ()
  validation: float = 0.0
  flip: bool = False
  crop: int = 0
  normalization: str = ''


@dataclasses.dataclass
class Clients:
  """Who the clients are: their data, their budgets, who takes part.

  Attributes:
    partition: How examples are divided. 'auto' is 'domain' where the set has
      several, else 'natural' where it says whose an example is, else
      'dirichlet', or 'iid' without classes. By classes: 'dirichlet',
      'pathological', 'shard' (runs of the examples sorted by class),
      'inner_dirichlet' (each client's own Dirichlet shares, in sizes that are
      given), 'distribution' (shares that a file lists), 'k_shot' (`shots`
      examples of each class, with replacement where they run out). By size,
      classes by chance: 'iid', 'quantity' (Dirichlet), 'linear', 'square',
      'exponential' (growing with the client's number), 'sizes' (listed). By a
      number: 'continuous' (of a regression, the label; of texts, the length).
      By domain: 'domain', 'domain_dirichlet' (Dirichlet over labels inside
      each domain). By what the set says: 'natural' (each of the largest groups
      that it names, such as speakers, is a client).
    count: Number of clients; with a domain partition, clients per domain. 0
      takes one per domain; without domains, one for each of `budgets`, or six.
    alpha: Concentration of the Dirichlet and quantity partitions.
    shards: Runs that a client of the shard partition has.
    sizes: Examples of each client, or of clients in turn, for 'sizes' and
      'inner_dirichlet'; there () gives everyone equally many.
    replace: Let clients of these two draw from all examples, so that there may
      be more clients than examples.
    distribution: File of the distribution partition: a row for each client, or
      for kinds of clients in turn, and in it the weight of each class, with
      commas between them.
    strictness: Of the continuous partition: 1 sorts, 0 leaves it to chance.
    group_size: How many groups of the set each natural client is.
    classes_per_client: Of the pathological partition.
    shots: Examples of each class that a client of the k_shot partition has.
    min_examples: Least number of examples of any client.
    divide_objects: Give each object (a name shared by images of several
      domains) to the clients of one domain only.
    budgets: Transformer blocks that a client can hold, one number per client
      or per domain; without domains clients take them in turn; () for the whole
      model on every client. Or shares of its blocks, above 0 and up to 1.0,
      rounded to the nearest number of blocks, halves down, at least 1. Shares
      fit any number of domains, or of clients without domains: more take
      them in turn, fewer take evenly spaced ones.
    cohort: 'one_per_domain', 'uniform', or 'auto': the first with a domain
      partition, the second with any other.
    cohort_size: Clients a round when the cohort is uniform; 0 takes six, or all
      where there are fewer.
    devices: What hardware the clients have: one of the settings of RaFFM's
      paper ('xsmall' to 'xlarge', see `costs/hardware.py`), or a TOML file of
      your own; '' leaves it open.
    fit: Give each client the most that its device can train, of the amounts
      that the method's options list (`budgets`, `width.rates`, `rank.ranks`,
      ...): within 'time', 'memory' or 'both'; '' takes those amounts in turn.
    deadline_s: Of 'time' and 'both': the longest that a client may take for a
      round, in seconds: receive, compute, send.
    cut_first: What a composed client that does not fit gives up first: 'depth',
      'width', 'rank' or 'branches'; '' cuts evenly, what most is left of.
    seed: Seed of the partition, apart from the run's seed.
    held_out: Share of each client's examples that it does not train on, but is
      judged by (`report`). With 0 it is judged by the test examples that are
      like its own: of its domain, if it has one, and of its classes.
    report: For how many clients, drawn at random, the end of a run tells how
      good models are on their own data; 0 tells it of none.
    report_steps: Of the report: local steps that a client takes from what the
      server sends it, at `local.lr`; 0 takes those of a round.
  """

  partition: str = 'auto'
  count: int = 0
  alpha: float = 0.5
  classes_per_client: int = 2
  shards: int = 2
  sizes: tuple[int, ...] = ()
  replace: bool = False
  distribution: str = ''
  strictness: float = 0.9
  group_size: int = 1
  shots: int = 12
  min_examples: int = 10
  divide_objects: bool = False
  # Of 12 blocks 12, 10, 8, 6, 4 and 3, as FedRA's authors have them.
  budgets: tuple[float, ...] = (1.0, 5 / 6, 2 / 3, 1 / 2, 1 / 3, 1 / 4)
  cohort: str = 'auto'
  cohort_size: int = 0
  devices: str = ''
  fit: str = ''
  deadline_s: float = 60.0
  cut_first: str = ''
  seed: int = 0
  held_out: float = 0.0
  report: int = 0
  report_steps: int = 0


@dataclasses.dataclass
class Local:
  """A client's local training.

  Attributes:
    optimizer: 'sgd', 'adam' or 'adamw'; its state is fresh every round.
    lr: Learning rate of the first step of round 0.
    momentum: Of sgd; 0 turns it off.
    weight_decay: Of adamw it is decoupled; sgd and adam add it to the gradient.
    batch_size: Examples in a step.
    steps: Local steps; 0 derives them from `epochs`.
    epochs: Passes over the client's data when `steps` is 0.
    equal_steps: With epochs, cut every client to the smallest client's number
      of batches plus one, as FedRA's authors do (main.py, client.py).
    clip_norm: Largest global gradient norm; 0 turns clipping off.
    prox: FedProx coefficient mu (arXiv 1812.06127); 0 turns it off.
    over_rounds: How the learning rate falls over rounds: 'decay' makes it
      lr * decay**(t // decay_every) in round t, 'cosine' lets it fall to 0,
      which it would reach one round after the last.
    decay: Of 'decay'.
    decay_every: Of 'decay': rounds from one to the next.
    warmup: Rounds in which the rate rises, in equal steps, to what it would be.
    schedule: How the rate changes within a client's round, over its own steps:
      'constant', 'linear' or 'cosine' (towards 0), or 'exponential' (times
      `gamma` after each local epoch).
    gamma: Of the exponential schedule.
    decay_mask: What weight decay applies to: 'all' that trains, or
      'no_bias_norm', as in Hugging Face's `Trainer`.
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
  over_rounds: str = 'decay'
  decay: float = 1.0
  decay_every: int = 1
  warmup: int = 0
  schedule: str = 'constant'
  gamma: float = 0.95
  decay_mask: str = 'all'


@dataclasses.dataclass
class Server:
  """The server's step on the mean delta.

  Attributes:
    optimizer: 'fedavg', 'fedavgm', 'fedadam', 'fedyogi' or 'fedadagrad'
      (arXiv 2003.00295).
    lr: Step on the mean delta; fedavg with 1 takes the mean of the clients.
      The adaptive ones need less, such as 0.01.
    momentum: Of fedavgm, and beta1 of fedadam and fedyogi; fedadagrad has none,
      as in the paper's experiments.
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
    devices: Devices among which the clients of a slab are split; 0 is all those
      of a host.
    fsdp: Divide the frozen weights among these devices, each block whole only
      while it runs: for models that no device holds whole.
    unroll: Let a model's blocks follow one another in the program of a step, in
      place of a loop over them. On a CPU a step takes 3 to 11 % less time; the
      program compiles in half as long again and takes more memory, once more
      the frozen weights of the blocks that a client holds. For long runs.
    compilation_cache: Keep compiled programs in the data folder.
    cache_frozen: Where the head alone trains (`model.tune` 'head'), run the
      frozen model once over all examples and keep what the head reads of each,
      4 bytes times the model's width; results are the same but for rounding.
      FLOPs are then those of the head.
  """

  mode: str = 'auto'
  chunk: int = 2
  slab: int = 0
  devices: int = 0
  fsdp: bool = False
  unroll: bool = False
  compilation_cache: bool = True
  cache_frozen: bool = False


@dataclasses.dataclass
class Experiment:
  """Everything that defines a run; equal experiments give equal runs.

  Attributes:
    method: The name of a method of the package, or one that a module registers.
    imports: Modules to import first, which register methods or partitions, or
      have TFDS builders (`plugins.py`).
    writers: Where metrics go besides the run's folder: 'wandb', 'mlflow' (whose
      packages are installed apart), or what a module registers.
    rounds: How many; with `patience`, at most.
    seed: Of all draws except the partition.
    eval_every: Rounds from one evaluation to the next; the last has one.
    eval_start: Evaluate before the first round, too; pictures begin there.
    checkpoint_every: Rounds from one checkpoint to the next.
    patience: End the run after this many evaluations in a row below the best so
      far; 0 runs all rounds. The score is the headline metric on the validation
      split. Without one (`data.validation`) it is that on the test data: such a
      run has chosen its end by the data that judge it.
    keep_best: Keep the server's state of the best evaluation, and deploy that
      one; it is judged as for `patience`.
  """

  method: str = 'fedra'
  imports: tuple[str, ...] = ()
  writers: tuple[str, ...] = ()
  rounds: int = 100
  seed: int = 0
  eval_every: int = 5
  eval_start: bool = False
  checkpoint_every: int = 10
  patience: int = 0
  keep_best: bool = False
  model: Model = _section(Model)
  lora: Lora = _section(Lora)
  fedadapter: Fedadapter = _section(Fedadapter)
  tiers: methods.Tiers = _section(methods.Tiers)
  data: Data = _section(Data)
  clients: Clients = _section(Clients)
  local: Local = _section(Local)
  server: Server = _section(Server)
  engine: Engine = _section(Engine)
  fedra: methods.Fedra = _section(methods.Fedra)
  inclusivefl: methods.Inclusivefl = _section(methods.Inclusivefl)
  depthfl: methods.Depthfl = _section(methods.Depthfl)
  width: methods.Width = _section(methods.Width)
  raffm: methods.Raffm = _section(methods.Raffm)
  prunefl: methods.Prunefl = _section(methods.Prunefl)
  prism: methods.Prism = _section(methods.Prism)
  rank: methods.Rank = _section(methods.Rank)
  hetlora: methods.Hetlora = _section(methods.Hetlora)
  heterotune: methods.Heterotune = _section(methods.Heterotune)
  composed: methods.Composed = _section(methods.Composed)
  feddyn: methods.Feddyn = _section(methods.Feddyn)
