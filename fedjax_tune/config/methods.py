"""Options of one method each, sections of `config.Experiment`."""

import dataclasses


@dataclasses.dataclass
class Fedra:
  """FedRA.

  Attributes:
    coverage_repair: Draw layers so that every layer has an owner in every
      round.
  """

  coverage_repair: bool = False


@dataclasses.dataclass
class Inclusivefl:
  """InclusiveFL.

  Attributes:
    variant: 'published', or 'fedra_port', the plain mean of each layer that
      FedRA's code ran.
    beta: Share of the next larger size in the step of a size's top block, in
      [0, 1]; only for the published variant.
  """

  variant: str = 'published'
  beta: float = 0.2


@dataclasses.dataclass
class Depthfl:
  """DepthFL.

  Attributes:
    variant: 'published', or 'fedra_port', as FedRA's code ran it.
    ramp_rounds: Rounds until the distillation has its full weight; 0 takes
      the variant's, 300 or 500.
    evaluate: The 'ensemble' of all exits or the 'last' exit; '' takes the
      variant's.
    feddyn: Coefficient alpha of FedDyn's regularizer (arXiv 2111.04263); 0
      turns it off. The authors' configuration has 0.1.
  """

  variant: str = 'published'
  ramp_rounds: int = 0
  evaluate: str = ''
  feddyn: float = 0.0


@dataclasses.dataclass
class Width:
  """Clients of different width: HeteroFL, FedRolex, FjORD, Federated Dropout.

  Attributes:
    rates: Share of each axis that a client holds; clients take the rates in
      turn, by client number.
    axes: Which axes are narrowed.
    scaler: Divide activations by the rate while training (HeteroFL, FedRolex).
    masked_loss: Leave classes that a client lacks out of its loss (HeteroFL,
      FedRolex).
    head_by_class: Average a class's part of the head over the clients that have
      the class (HeteroFL, FedRolex).
    roll: Which way the window moves: 'backward', as in the authors' code, or
      'forward' (FedRolex).
    across_heads: Roll flattened queries, keys and values, as the authors' code
      does, which mixes heads (FedRolex).
    distill: Distil the client's widest model into its narrow ones (FjORD).
  """

  rates: tuple[float, ...] = (1.0, 0.5, 0.25, 0.125, 0.0625)
  axes: tuple[str, ...] = ('embed', 'qk_dim', 'v_dim', 'ffn')
  scaler: bool = True
  masked_loss: bool = True
  head_by_class: bool = True
  roll: str = 'backward'
  across_heads: bool = False
  distill: bool = False


@dataclasses.dataclass
class Raffm:
  """RaFFM; the defaults are its released code's, with the paper's rule P.

  Attributes:
    mode: 'slice' trains physically narrower models; 'mask' trains full shapes
      with masked gradients, as the code did when the paper appeared.
    space: Which sizes a subnetwork may have: a preset of
      `methods/raffm/spaces.py`, or 'custom', which takes the five fields below.
    head_dim: Shares of the width of every head.
    heads: Shares of the heads.
    ffn: Shares of the MLP's hidden width.
    embed: Shares of the model width.
    layers: Shares of the depth.
    sampling: 'random' (one client of a round has the full model, the others
      draw their sizes), 'sandwich' (in addition, one client has the smallest),
      or 'resource' (each has the largest that fits its device, see
      `clients.fit`).
    priority: What salience reorders: 'none', 'qk' (the authors'), 'qk+vo' or
      'qk+vo+ffn'.
    reorder: 'every_round', or 'once' before the first round.
    aggregation: 'mean' over all participants (rule P), 'coverage', or
      'zero_filled', as in the released code, which shrinks parameters that few
      clients hold.
  """

  mode: str = 'slice'
  space: str = 'released'
  head_dim: tuple[float, ...] = (1.0,)
  heads: tuple[float, ...] = (1.0,)
  ffn: tuple[float, ...] = (1.0,)
  embed: tuple[float, ...] = (1.0,)
  layers: tuple[float, ...] = (1.0,)
  sampling: str = 'sandwich'
  priority: str = 'qk'
  reorder: str = 'every_round'
  aggregation: str = 'mean'


@dataclasses.dataclass
class Prunefl:
  """PruneFL; the defaults are RaFFM's.

  Attributes:
    keep: Share of the weights that stay in the MLP and in attention's output.
    threshold: Magnitude that weights of queries, keys, values and of the
      classifier must exceed; 0 keeps all.
  """

  keep: float = 0.8
  threshold: float = 1e-2


@dataclasses.dataclass
class Prism:
  """PriSM; the defaults are RaFFM's, `power` is that of PriSM's code.

  Attributes:
    keep: Share of each MLP map's orthogonal kernels that a client gets.
    power: Kernels are drawn with p ~ s^power, s their singular values.
    frob_decay: Coefficient of the Frobenius decay of the MLP's maps.
  """

  keep: float = 0.8
  power: float = 1.0
  frob_decay: float = 2e-4


@dataclasses.dataclass
class Rank:
  """Clients of different LoRA rank.

  Attributes:
    ranks: Ranks that clients take in turn, by client number; the largest must
      be `lora.rank`, the server's rank. () gives `lora.rank` to all.
    scaling: 'common' multiplies every client's adapters by lora.alpha /
      lora.rank, so that a rank means the same to all clients (alpha is
      proportional to the rank, as FLoRA's authors set it). 'client' multiplies
      them by lora.alpha over the client's own rank, as peft and FlexLoRA's
      authors do, with a fixed alpha. The fewer ranks a client has, the more the
      server's adapters then weigh in its model; only FlexLoRA compensates for
      that.
  """

  ranks: tuple[int, ...] = ()
  scaling: str = 'common'


@dataclasses.dataclass
class Hetlora:
  """HetLoRA's self-pruning; whether its authors use these values is uncertain.

  Attributes:
    gamma: Share of its ranks that a client keeps when it prunes; 1 turns
      pruning off.
    penalty: Coefficient of the norms of the ranks that would be pruned.
  """

  gamma: float = 0.99
  penalty: float = 5e-4


@dataclasses.dataclass
class Composed:
  """Clients limited along several axes, with the named methods' options.

  Attributes:
    depth: Which blocks a client of `clients.budgets` holds: 'fedra' (random),
      'prefix', or '' for all.
    width: Which part of each width: 'raffm' (its spaces, salience and mean),
      'heterofl', 'fedrolex', 'random' (Federated Dropout), or '' for all.
    rank: How adapters of `rank.ranks` are averaged: 'fedit' (padded with
      zeros), 'hetlora' (padded with zeros and pruned), 'rbla' (each rank over
      the clients that hold it), or '' where all have the same rank.
    branches: How many of FedAdapter's branches a client holds; clients take the
      numbers in turn; () for all.
  """

  depth: str = ''
  width: str = ''
  rank: str = ''
  branches: tuple[int, ...] = ()


@dataclasses.dataclass
class Feddyn:
  """FedDyn.

  Attributes:
    alpha: Coefficient of the regularizer. The paper tries 0.1, 0.01 and 0.001;
      from memory, its code's examples take 0.01.
  """

  alpha: float = 0.01


@dataclasses.dataclass
class Tiers:
  """Different models in one federation; clients take the tiers in turn.

  A tier is one of the models, with the clients that train it. The first four
  fields have one value per tier; client k has tier k modulo the number of
  tiers. () takes the default for all.

  Attributes:
    weights: The tiers' checkpoints, each named as in `model.weights`. Method
      heterotune reads these in place of `model.weights`; other methods have one
      model and read none of the fields here.
    depth: The first blocks that are kept; 0 keeps all.
    width: Share of the heads and of the MLP that is kept.
    joins: The first round in which clients of the tier take part.
    public: Unlabelled texts or pictures that everyone may see, on which tiers
      are aligned: the name of a prepared data set. With '' some training
      examples of the run's own set are set apart, and no client has them.
    public_examples: How many public inputs to use at most. Of the run's own
      training examples no more than a quarter are taken, or 128 if a quarter is
      fewer, and never more than half.
    head: 'own' gives each tier a head for its own features. 'common', our
      addition, gives all tiers one head, averaged over all, on a code that
      public inputs align across tiers. It needs projections that are not free,
      since free ones let the code drift apart; 'common_any' allows those too.
      'auto' is 'common' with projections that are not free, and where only
      heads train.
    head_rank: Width of the code.
    head_map: How a tier's features become the code: 'procrustes' (a rotation)
      or 'ridge' (a regression, ridge 1e-3), which was worse with 512 texts.
  """

  weights: tuple[str, ...] = ()
  depth: tuple[int, ...] = ()
  width: tuple[float, ...] = ()
  joins: tuple[int, ...] = ()
  public: str = ''
  public_examples: int = 512
  head: str = 'auto'
  head_rank: int = 64
  head_map: str = 'procrustes'


@dataclasses.dataclass
class Heterotune:
  """HeteroTune; every choice that the paper's public text leaves open.

  Attributes:
    reading: Which part of FedAdapter's cores a tier has. 'nested' (reading A):
      the first branches; 'own' (B): all branches, where branch m belongs to
      tier m; 'width' (C): the first columns of one wide branch.
    branches: For each tier, its number of branches (reading 'nested') or share
      of the columns ('width'). () means M for the deepest tier, M - 1 for the
      next, ..., 1; of equally deep tiers the first listed has more.
    foreign: In reading 'own', whether a tier's clients also train the branches
      of other tiers ('trained') or not ('frozen').
    sites: How many of each core are shared, at equal relative depths; 0 takes
      the number of blocks of the shallowest tier.
    every_block: Whether all blocks have adapters, or only one block per site.
    mapping: Which blocks of two tiers share a core: those at the same relative
      'depth', or those of the same 'index', which suits parts of one model;
      cores that only deeper tiers have are not shared with the others.
    share: Whether tiers share anything. If not, they train separately, and the
      blocks of a tier do not share a core at a site either.
    cmga: Cross-model gradient alignment of the tiers' updates: 'off',
      'pairwise' (as in PCGrad) or 'mean'.
    personal: Whether each client keeps for itself what its tier would otherwise
      average: projections, gates, private branches and heads, where these train
      and are not shared. Then each client's own model is evaluated, on test
      examples of its domain and classes.
  """

  reading: str = 'nested'
  branches: tuple[int, ...] = ()
  foreign: str = 'frozen'
  sites: int = 0
  every_block: bool = True
  mapping: str = 'depth'
  share: bool = True
  cmga: str = 'off'
  personal: bool = False
