"""The typed configuration of an experiment.

An experiment file in `experiments/` returns one `Experiment`. The dataclasses
are plain (not frozen) because absl's config flags write into them; nothing
below `launch/` changes them. Every default is here or, if only one method reads
it, in `methods.py`, and nowhere else. Some defaults leave a field open ('auto',
0, shares of a model): `training/defaults.py` then derives it from data set and
model, so that a change of either needs no change of other fields.
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
      Hugging Face folder. A folder that launch.export wrote also provides the
      head, if the head has the data's classes.
    dtype: Type of the factors in products with pretrained weights, and of those
      that are frozen in memory: 'float32', or 'bfloat16', which is faster where
      the hardware multiplies it. Sums of products and everything else
      (weights that train, adapters, norms, attention, losses, optimizers) stay
      float32.
    remat: Recompute each block in the backward pass; less memory, more time.
    dropout: Rate of the backbone's own dropout in training: after the
      embedding, on attention's weights, on the outputs of attention and MLP,
      and before a text's classifier, as in Hugging Face's models. BERT was
      pretrained with 0.1, a ViT with 0.
    tune: What trains besides the head: 'lora' (adapters), 'adapter'
      (bottlenecks behind sublayers, section `fedadapter`), 'bitfit' (every
      bias, arXiv 2106.10199), 'prompt' (tokens behind the class token, or
      before a decoder's words, arXiv 2104.08691 and 2203.12119), 'prefix' (keys
      and values of every block, arXiv 2101.00190), 'full' (every parameter), or
      'head' (nothing else: a linear probe of the frozen model).
    prompt_tokens: How many tokens 'prompt' trains, or how many keys 'prefix'
      trains; the papers use 1 to 200.
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
    rank: Inner width of each adapter; an adapter adds B A x.
    alpha: The output of an adapter is multiplied by alpha / rank.
    dropout: Rate of dropout on the adapters' inputs in training.
    targets: Which linear maps of every block are adapted; ('auto',) takes those
      of FedRA's authors, 'attn.proj' and 'mlp.fc2', and for a decoder those of
      peft, 'attn.q' and 'attn.v'.
    patch_embed: Adapt also the convolution that embeds patches (texts have
      none).
    init: Where adapters start: a folder of Hugging Face's peft, such as
      launch.export writes, with the same rank, alpha and targets; '' starts
      with fresh adapters.
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
    after: The sublayers that have one: 'mlp', 'attn'.
    core: What a branch is, 'mlp' or 'linear'.
    gating: Weights of the branches: 'static', 'token' or 'uniform'.
    placement: 'sequential' or 'parallel' to the sublayer, or 'auto': parallel
      if projections are not free.
    scale: Factor of the adapter's output.
    projections: How a tier maps its features into the cores and back, for
      method heterotune. 'free': each tier trains its own. 'aligned': they are
      computed once, from public inputs (`tiers.public`), so that a core means
      the same in every tier, and never change. 'aligned_start': they train,
      starting from the aligned ones. 'alternating': the same, but they train in
      turn with the shared parts, by local steps. 'random': they are drawn and
      never change, for comparison. All but 'free' need placement 'parallel'.
      'auto' is 'aligned' where method heterotune shares cores and placement may
      be parallel, else 'free'. The paper shares the cores, but its public text
      does not say how different models understand them. Only a common space
      helped a tier with few labels (`experiments/heterotune_transfer.py`).
    private: Give each tier an additional branch that only this tier trains. It
      has free projections, and is mixed with the shared branches by a learned
      share at each site.
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
    label_column: The column of your own table that has the label; '' takes one
      with a usual name: 'label', 'class', 'category', ... The next four fields
      work in the same way.
    text_column: The column of the text: 'text', 'review', ...; two names with a
      comma between them make a pair, as 'premise,hypothesis'.
    image_column: The column of the picture, or of the path of its file from the
      table's folder: 'image', 'file', ...
    domain_column: The column of the domain's name: 'domain'; '-' reads none.
    client_column: The column of the client, for clients.partition='natural':
      'client', 'user', ...; '-' reads none, for example if a column with such a
      name has gaps.
    test_share: How much of each class is held out to evaluate on, where your
      own files have no split.
    split_seed: Seed of the draw of these examples.
    bad_rows: 'refuse' ends a run over a row or file that cannot be used;
      'leave_out' leaves such rows out and counts them.
    data_dir: Where prepared data and weights are; '' is the user's cache.
    image_size: Pixels of a side, a multiple of the model's patch size. 0 takes
      the size of arrays in memory, or the size that the model is made for (224
      for DINOv2, which reads any size; 56 for 'dinov2_vits14', so that a CPU
      can train it). Pictures of other sizes are resized to that square,
      bicubically, whatever the weights' own preprocessor does.
    domains: Which domains to use, in this order; () takes all domains of the
      set.
    num_classes: Keep labels below this number; 0 keeps all.
    test_examples: How many test examples of each domain to evaluate, spread
      evenly over the domain; 0 takes all.
    lengths: Lengths in tokens to which texts are padded, ascending; longer
      texts are cut to the last. Each length compiles its own program, or a
      branch of one: where clients run one by one, a batch runs in parts of
      similar length, and finer lengths save more time. () takes 32, 64 and 128,
      as far as the models have positions for them.
    validation: Share of each client's examples that nobody trains on. Together
      these are the validation split, by which `patience` and `keep_best` judge.
      With 0 there is no such split.
    flip: Mirror pictures left to right in half of the local steps.
    crop: Shift pictures in local steps by up to this many pixels each way; new
      pixels at a border repeat the border.
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
      several domains, else 'natural' where the set names the client of each
      example, else 'dirichlet', or 'iid' without classes. By classes:
      'dirichlet', 'pathological', 'shard' (runs of the examples sorted by
      class), 'inner_dirichlet' (each client's own Dirichlet shares, with given
      sizes), 'distribution' (shares listed in a file), 'k_shot' (`shots`
      examples of each class, with replacement where they run out). By size,
      with random classes: 'iid', 'quantity' (Dirichlet), 'linear', 'square',
      'exponential' (growing with the client's number), 'sizes' (listed). By a
      number: 'continuous' (the label of a regression, the length of texts). By
      domain: 'domain', 'domain_dirichlet' (Dirichlet over labels inside each
      domain). By groups that the set names: 'natural' (each of the largest
      groups, such as speakers, is a client).
    count: Number of clients; with a domain partition, clients per domain. 0
      takes one per domain; without domains, one for each of `budgets`, or six.
    alpha: Concentration of the Dirichlet and quantity partitions.
    shards: How many runs a client of the shard partition has.
    sizes: Number of examples of each client, or of clients in turn, for 'sizes'
      and 'inner_dirichlet'; with () 'inner_dirichlet' gives all clients equally
      many.
    replace: Let clients of these two draw from all examples, so that there may
      be more clients than examples.
    distribution: File of the distribution partition. It has a row for each
      client, or for kinds of clients in turn, with the weights of the classes
      separated by commas.
    strictness: Of the continuous partition: 1 sorts the examples, 0 divides
      them at random.
    group_size: How many groups of the set make one natural client.
    classes_per_client: Classes of a client in the pathological partition.
    shots: Examples of each class of a client in the k_shot partition.
    min_examples: Least number of examples of any client.
    divide_objects: Give each object (a name shared by images of several
      domains) to the clients of one domain only.
    budgets: Transformer blocks that a client can hold, one number per client or
      per domain; without domains clients take them in turn; () means the whole
      model on every client. Or shares of the model's blocks, above 0 and up to
      1.0, rounded to the nearest number of blocks, halves down, at least 1.
      Shares fit any number of domains, or of clients without domains: if there
      are more, they take the shares in turn; if fewer, evenly spaced ones.
    cohort: 'one_per_domain', 'uniform', or 'auto': the first with a domain
      partition, the second with any other.
    cohort_size: Clients per round when the cohort is uniform; 0 takes six, or
      all if there are fewer.
    devices: What hardware the clients have: one of the settings of RaFFM's
      paper ('xsmall' to 'xlarge', see `costs/hardware.py`), or a TOML file of
      your own; '' leaves it open.
    fit: Give each client the most that its device can train within 'time',
      'memory' or 'both', out of the amounts that the method's options list
      (`budgets`, `width.rates`, `rank.ranks`, ...); with '' clients take those
      amounts in turn.
    deadline_s: For 'time' and 'both': the longest that a client may take to
      receive, compute and send in a round, in seconds.
    cut_first: The axis that a composed client cuts first if it does not fit:
      'depth', 'width', 'rank' or 'branches'; '' cuts evenly, always the axis
      that has the largest share left.
    seed: Seed of the partition, apart from the run's seed.
    held_out: Share of each client's examples that it does not train on, but is
      judged by (`report`). With 0 it is judged by the test examples that are
      like its own: those of its domain, if it has one, and of its classes.
    report: For how many clients, drawn at random, the run reports at its end
      how good models are on their own data; 0 reports none.
    report_steps: Local steps that a client takes for the report, from what the
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
    momentum: Momentum of sgd; 0 turns it off.
    weight_decay: Decoupled with adamw; sgd and adam add it to the gradient.
    batch_size: Examples in a step.
    steps: Local steps; 0 derives them from `epochs`.
    epochs: Passes over the client's data when `steps` is 0.
    equal_steps: With epochs, cut every client to the smallest client's number
      of batches plus one, as FedRA's authors do (main.py, client.py).
    clip_norm: Largest global gradient norm; 0 turns clipping off.
    prox: FedProx coefficient mu (arXiv 1812.06127); 0 turns it off.
    over_rounds: How the learning rate falls over rounds: 'decay' makes it
      lr * decay**(t // decay_every) in round t; 'cosine' lets it fall towards
      0, which it would reach one round after the last.
    decay: Factor of 'decay'.
    decay_every: Rounds from one decay to the next.
    warmup: Rounds in which the rate rises to its full value, in equal steps.
    schedule: How the rate changes within a client's round, over its own steps:
      'constant', 'linear' or 'cosine' (towards 0), or 'exponential' (times
      `gamma` after each local epoch).
    gamma: Factor of the exponential schedule.
    decay_mask: What weight decay applies to: 'all' parameters that train, or
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
    lr: Step on the mean delta; fedavg with 1 takes the mean of the clients. The
      adaptive optimizers need less, such as 0.01.
    momentum: Momentum of fedavgm, beta1 of fedadam and fedyogi; fedadagrad has
      none, as in the paper's experiments.
    beta2: Second-moment decay of fedadam and fedyogi.
    eps: tau of the adaptive optimizers.
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
    mode: 'map' (one by one), 'chunk', 'vmap' (all at once), or 'auto': 'map' on
      a CPU, where it was the fastest, and 'vmap' elsewhere.
    chunk: Clients at a time in mode 'chunk'.
    slab: Clients in one call; 0 derives it from the cohort.
    devices: Devices among which the clients of a slab are split; 0 takes all
      devices of a host.
    fsdp: Divide the frozen weights among these devices; a block is whole only
      while it runs. For models that no single device can hold.
    unroll: Put a model's blocks one after another into the program of a step,
      instead of a loop over them. On a CPU a step takes 3 to 11 % less time,
      but compiling takes half as long again, and the program needs more memory:
      a copy of the frozen weights of the blocks that a client holds. For long
      runs.
    compilation_cache: Keep compiled programs in the data folder.
    cache_frozen: Where only the head trains (`model.tune` 'head'), run the
      frozen model once over all examples and keep the features that the head
      reads, 4 bytes times the model's width for each example. Results are the
      same except for rounding. The FLOPs reported are then those of the head.
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
    method: The name of a method, of the package or registered by a module.
    imports: Modules to import first: they register methods or partitions, or
      have TFDS builders (`plugins.py`).
    writers: Where metrics go in addition to the run's folder: 'wandb', 'mlflow'
      (whose packages are installed separately), or a writer that a module
      registers.
    rounds: Number of rounds; with `patience`, the most.
    seed: Seed of all draws except the partition.
    eval_every: Rounds from one evaluation to the next; the last round has one.
    eval_start: Also evaluate before the first round; plots begin there.
    checkpoint_every: Rounds from one checkpoint to the next.
    patience: End the run after this many evaluations in a row below the best so
      far; 0 runs all rounds. The score is the headline metric on the validation
      split. Without such a split (`data.validation`) it is the headline metric
      on the test data: such a run chooses its end by the data that judge it.
    keep_best: Keep the server's state of the best evaluation, and deploy that
      state; the best is chosen as for `patience`.
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
