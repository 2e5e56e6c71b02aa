"""pfl-research: its simulated backend and federated averaging, one process."""

import importlib
import time
from typing import Any

import numpy as np
import torch

from .. import fixed_workload as fixed
from . import harness, torch_model


class _Wrapped(torch.nn.Module):
  """The model as pfl trains it; it notes each loss."""

  def __init__(self, model: torch.nn.Module) -> None:
    super().__init__()
    self.model, self.losses = model, []

  def loss(self, image_B: torch.Tensor, label_B: torch.Tensor, **_: Any) -> Any:
    """Returns the loss of a batch."""
    logits = self.model(pixel_values=image_B).logits
    value = torch.nn.functional.cross_entropy(logits, label_B)
    self.losses.append(value.item())
    return value

  def metrics(self, *_: Any, **__: Any) -> dict[str, Any]:
    """Returns nothing: pfl calls this, but the benchmark does not evaluate."""
    return {}


def _tensors(work: fixed.Workload, client: int) -> list[torch.Tensor]:
  images, labels = fixed.draw_client(work, client)
  flat = images.reshape(-1, *images.shape[2:]), labels.reshape(-1)
  return [torch.from_numpy(flat[0]), torch.from_numpy(flat[1]).long()]


def _data(options: harness.Options) -> Any:
  """Returns pfl's view of the clients, in the order of the cohorts."""
  dataset = importlib.import_module('pfl.data.dataset')
  federated = importlib.import_module('pfl.data.federated_dataset')
  work = options.work
  cohorts = [fixed.draw_cohort(work, rnd) for rnd in range(options.rounds)]
  # It asks for one client more than it trains.
  order = iter([k for cohort in [*cohorts, cohorts[0]] for k in cohort])
  kept = {k: _tensors(work, k) for cohort in cohorts for k in cohort}
  make = lambda k: dataset.Dataset(raw_data=kept[k], user_id=str(k))
  return federated.FederatedDataset(make, lambda: next(order))


def main() -> None:
  """Runs the rounds, which pfl calls itself."""
  options = harness.parse()
  names = {
    'simulate': 'pfl.aggregate.simulate',
    'weighting': 'pfl.aggregate.weighting',
    'base': 'pfl.algorithm.base',
    'averaging': 'pfl.algorithm.federated_averaging',
    'callback': 'pfl.callback.base',
    'hyperparam': 'pfl.hyperparam',
    'metrics': 'pfl.metrics',
    'model': 'pfl.model.pytorch',
  }
  pfl = {short: importlib.import_module(n) for short, n in names.items()}
  wrapped = _Wrapped(torch_model.load(options.work, options.init))
  trained = [p for p in wrapped.parameters() if p.requires_grad]
  local = lambda parameters, lr: torch.optim.SGD(
    [p for p in parameters if p.requires_grad], lr=lr, momentum=fixed.MOMENTUM
  )
  model = pfl['model'].PyTorchModel(
    wrapped,
    local_optimizer_create=local,
    central_optimizer=torch.optim.SGD(trained, 1.0),
  )
  seconds, losses = [], []

  class Clock(pfl['callback'].TrainingProcessCallback):
    def on_train_begin(self, *, model: Any) -> Any:
      del model
      self.begin = time.perf_counter()
      return pfl['metrics'].Metrics()

    def after_central_iteration(self, *_: Any, **__: Any) -> Any:
      now = time.perf_counter()
      seconds.append(now - self.begin)
      self.begin = now
      losses.append(float(np.mean(wrapped.losses)))
      wrapped.losses.clear()
      return False, pfl['metrics'].Metrics()

  backend = pfl['simulate'].SimulatedBackend(
    training_data=_data(options),
    val_data=None,
    postprocessors=[pfl['weighting'].WeightByDatapoints()],
  )
  pfl['averaging'].FederatedAveraging().run(
    algorithm_params=pfl['base'].NNAlgorithmParams(
      central_num_iterations=options.rounds,
      evaluation_frequency=10**6,
      train_cohort_size=options.work.cohort,
      val_cohort_size=0,
    ),
    backend=backend,
    model=model,
    callbacks=[Clock()],
    model_train_params=pfl['hyperparam'].NNTrainHyperParams(
      local_learning_rate=fixed.LR,
      local_num_epochs=None,
      local_batch_size=options.work.batch,
      local_num_steps=fixed.STEPS,
    ),
    model_eval_params=pfl['hyperparam'].NNEvalHyperParams(
      local_batch_size=None
    ),
  )
  harness.report(options, seconds, losses, ('pfl', 'torch'))


if __name__ == '__main__':
  main()
