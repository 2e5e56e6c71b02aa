"""torch + peft: a loop over clients, one model whose adapters are swapped."""

import numpy as np
import torch

from . import harness, torch_model


def start(options: harness.Options) -> harness.RunRound:
  """Loads the model; returns what runs a round."""
  model = torch_model.load(options.work, options.init)
  shared = {
    n: p.detach().clone() for n, p in torch_model.trained(model).items()
  }

  def run_round(images: np.ndarray, labels: np.ndarray) -> float:
    total = {name: torch.zeros_like(x) for name, x in shared.items()}
    losses = []
    for image_S, label_S in zip(images, labels, strict=True):
      torch_model.assign(model, shared)
      losses.append(
        torch_model.train_client(
          model, image_S, label_S, autocast=options.autocast
        )
      )
      for name, parameter in torch_model.trained(model).items():
        total[name] += parameter.detach() - shared[name]
    for name, delta in total.items():
      shared[name] += delta / len(labels)
    return float(np.mean(losses))

  return run_round


if __name__ == '__main__':
  harness.main(start, ('torch', 'transformers', 'peft'))
