"""PriSM, the baseline of RaFFM: clients train some orthogonal kernels.

Niu, Prakash, Kundu, Lee, Avestimehr, "Overcoming Resource Constraints in
Federated Learning: Large Models Can Be Trained with only Weak Clients", TMLR
2023, arXiv 2208.13141; the authors' code is github.com/yuehniu/modeldecomp-fl
(fl/server_orth_drop_v2.py, utils/nn_transformer.py, utils/frob.py). RaFFM's
code has a part of it (github.com/yusx-swapp/RaFFM,
experiments/comparison_baselines/PriSM, prism_fl.py).

It is certain that both MLP maps of each block become U V by the SVD and that
attention stays as it is; RaFFM states keep = 0.8 and the decay 2e-4. The rest
is uncertain: RaFFM released the model but not the server that draws kernels,
its forward pass has all of them, and its script stops at an undefined name.
Here the server is that of PriSM's authors; keep = 1 is what RaFFM's released
forward pass computes.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array
import numpy as np

from fedjax_tune import config
from fedjax_tune.data.tasks import Task
from fedjax_tune.engine.algorithm import (
  Algorithm,
  Alone,
  Client,
  Context,
  LossAndSums,
  fedavg_client,
)
from fedjax_tune.engine.client import Batch
from fedjax_tune.engine.randomness import host_rng
from fedjax_tune.methods import compose, refusals
from fedjax_tune.methods.depth import uniform
from fedjax_tune.methods.facts import Facts
from fedjax_tune.models import factored, foundation
from fedjax_tune.models.foundation import Foundation, Model
from fedjax_tune.selection import Selection
from fedjax_tune.typing import Axes, Tree

# Factored linear map of the MLP -> axis of its kernels.
_KERNELS = {'fc1': 'fc1_kernel', 'fc2': 'fc2_kernel'}


@dataclasses.dataclass(frozen=True)
class Kernels:
  """Random kernels of each map, new for each client and round.

  Each client gets a share `keep` of the kernels of each map, drawn without
  replacement with p ~ s^power, s their singular values.

  Attributes:
    spectra: For each axis of kernels their singular values.
    keep: Share of each map's kernels that a client gets.
    power: How strongly larger kernels are preferred.
    seed: Seed of the run.
  """

  spectra: Mapping[str, np.ndarray]
  keep: float
  power: float
  seed: int

  @property
  def axes(self) -> frozenset[str]:
    """The axes of kernels."""
    return frozenset(self.spectra)

  def draw(self, rnd: int, cohort: Sequence[int]) -> list[Selection]:
    """Returns the kernels of each client of the cohort."""
    return [Selection.of(self._draw(rnd, k)) for k in cohort]

  def _draw(self, rnd: int, client: int) -> dict[str, np.ndarray | int]:
    rng, held = host_rng('allocation', self.seed, rnd, client), {}
    for axis, singular in self.spectra.items():
      amount = math.ceil(self.keep * len(singular))
      odds = np.maximum(singular / singular[0], 1e-9) ** self.power
      drawn = rng.choice(
        len(singular), amount, replace=False, p=odds / odds.sum()
      )
      whole = amount == len(singular)
      held[axis] = amount if whole else np.sort(drawn)
    return held


def factor(found: Foundation) -> Foundation:
  """Factors the MLP of every block."""
  model = found.merge(found.base, found.theta)
  mlp = model.blocks.mlp
  for name, axis in _KERNELS.items():
    setattr(mlp, name, factored.Factored(getattr(mlp, name), axis))
  return foundation.split(model, found.depth)


def spectra(found: Foundation) -> dict[str, np.ndarray]:
  """Returns for each axis of kernels the singular values of its maps."""
  values = {}
  for name, axis in _KERNELS.items():
    u_LxDxR = found.theta['blocks']['mlp'][name]['u']
    # A column of U is as long as the root of its singular value.
    singular_LxR = jnp.sum(u_LxDxR**2, axis=1)
    values[axis] = np.asarray(jnp.mean(singular_LxR, 0), np.float64)
  return values


def client(task: Task, frob_decay: float) -> Client:
  """Returns the client that adds the penalty on what it holds.

  Args:
    task: What is learned; metrics are the task's.
    frob_decay: Coefficient a of the penalty a/2 ||U V||^2 of each map.
  """
  inner = fedavg_client(task)

  def loss(
    model: Model, batch: Batch, context: Context, key: jax.Array
  ) -> LossAndSums:
    total, metrics = inner.loss(model, batch, context, key)
    maps = [getattr(model.blocks.mlp, name) for name in _KERNELS]
    squares = [squared_norm(m.u[...], m.v[...]) for m in maps]
    return total + frob_decay / 2 * sum(squares), metrics

  # The penalty would be computed anew for each part.
  return dataclasses.replace(inner, loss=loss, by_example=False)


def orthogonalize(theta: Tree, axes: Axes) -> Callable[[Tree], Tree]:
  """Makes the kernels orthogonal, the largest first; the map stays."""
  del theta, axes
  return _decompose


def multiplied(theta: Tree) -> Tree:
  """Returns the parameters with U V in place of the factors."""
  blocks = theta['blocks']
  mlp = dict(blocks['mlp'])
  for name in _KERNELS:
    kernel = mlp[name]['u'] @ mlp[name]['v']
    mlp[name] = {'kernel': kernel, 'bias': mlp[name]['bias']}
  return {**theta, 'blocks': {**blocks, 'mlp': mlp}}


def squared_norm(u_LxDxR: Array, v_LxRxF: Array) -> jax.Array:
  """Returns the sum over layers of ||U V||^2, Frobenius."""
  inner = jnp.einsum('ldr,lds->lrs', u_LxDxR, u_LxDxR)
  return jnp.einsum('lrs,lrf,lsf->', inner, v_LxRxF, v_LxRxF)


def _decompose(theta: Tree) -> Tree:
  blocks = theta['blocks']
  mlp = dict(blocks['mlp'])
  for name in _KERNELS:
    u, v = factored.decompose(mlp[name]['u'] @ mlp[name]['v'])
    mlp[name] = {**mlp[name], 'u': u, 'v': v}
  return {**theta, 'blocks': {**blocks, 'mlp': mlp}}


def build(facts: Facts) -> Algorithm:
  """Builds PriSM: FedAvg of models whose MLP maps lack random kernels.

  The server averages each kernel over the clients that held it, and before the
  next round makes the kernels orthogonal again. Clients compute with, receive
  and send only what they hold; every client holds all blocks.

  There are two simplifications, because rounds are planned ahead on the host:
  layers share a draw (kernel i is the i-th largest of each layer), and s comes
  from the pretrained weights, averaged over layers.
  """
  options, task = facts.experiment.prism, facts.task
  found = factor(facts.foundation())
  drawn = Kernels(spectra(found), options.keep, options.power, facts.seed)
  everything = (facts.depth,) * len(facts.budgets)
  fedavg = uniform.fedavg(found, task, everything, facts.depth)
  return dataclasses.replace(
    fedavg,
    rule=compose.product(fedavg.rule, drawn),
    client=client(task, options.frob_decay),
    reorder=orthogonalize,
    ending=lambda theta, _: {
      '': Alone(multiplied(theta), {'layer': facts.depth})
    },
  )


def check(
  experiment: config.Experiment,
  sizes: Mapping[str, int],
  budgets: tuple[int, ...],
) -> None:
  """Checks the options.

  Raises:
    ValueError: Not all parameters train, or the server optimizer has state,
      although kernels are new in each round.
  """
  del budgets
  refusals.decoder(
    sizes, "method='prism'", 'it factors the two maps of an ungated MLP'
  )
  tune, optimizer = experiment.model.tune, experiment.server.optimizer
  if tune != 'full':
    raise ValueError(
      f"model.tune={tune!r} must be 'full' where method='prism': it factors the"
      ' weights that train.'
    )
  if optimizer != 'fedavg':
    raise ValueError(
      f"server.optimizer={optimizer!r} must be 'fedavg' where method='prism':"
      ' kernels are new in each round.'
    )
