"""The ViT of transformers with peft's LoRA, and a client's training in torch."""

from typing import Any
import warnings

import numpy as np
import peft
import torch
import transformers

from .. import fixed_workload as fixed


def build(work: fixed.Workload) -> torch.nn.Module:
  """Builds the model; its weights depend on the workload alone."""
  torch.manual_seed(fixed.SEED)
  sizes: dict[str, Any] = {
    'hidden_size': work.embed,
    'num_hidden_layers': work.depth,
    'num_attention_heads': work.heads,
    'intermediate_size': work.ffn,
    'image_size': fixed.SIDE,
    'patch_size': work.patch,
    'num_labels': fixed.CLASSES,
    'hidden_dropout_prob': 0.0,
    'attention_probs_dropout_prob': 0.0,
  }
  model = transformers.ViTForImageClassification(
    transformers.ViTConfig(**sizes)
  )
  lora = peft.LoraConfig(
    r=fixed.RANK,
    lora_alpha=fixed.ALPHA,
    lora_dropout=0.0,
    target_modules=['q_proj', 'v_proj'],
    modules_to_save=['classifier'],
  )
  with warnings.catch_warnings():
    # peft asks transformers for what that calls deprecated.
    warnings.simplefilter('ignore', FutureWarning)
    return peft.get_peft_model(model, lora)


def tensors(model: torch.nn.Module) -> dict[str, np.ndarray]:
  """Returns all parameters by name."""
  return {n: p.detach().numpy() for n, p in model.named_parameters()}


def load(work: fixed.Workload, init: dict[str, np.ndarray]) -> torch.nn.Module:
  """Builds the model with the given parameters, for one thread."""
  torch.set_num_threads(1)
  model = build(work).train()
  assign(model, {name: torch.from_numpy(x) for name, x in init.items()})
  return model


def trained(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
  """Returns the parameters that train, by name."""
  return {n: p for n, p in model.named_parameters() if p.requires_grad}


def assign(model: torch.nn.Module, values: dict[str, torch.Tensor]) -> None:
  """Overwrites parameters by name."""
  own = dict(model.named_parameters())
  with torch.no_grad():
    for name, value in values.items():
      own[name].copy_(value)


def train_client(
  model: torch.nn.Module,
  images: np.ndarray,
  labels: np.ndarray,
  *,
  autocast: bool = False,
) -> float:
  """Takes a client's local steps in place; returns its mean loss."""
  images_S, labels_S = torch.from_numpy(images), torch.from_numpy(labels).long()
  optimizer = torch.optim.SGD(
    trained(model).values(), lr=fixed.LR, momentum=fixed.MOMENTUM
  )
  total = 0.0
  for image_B, label_B in zip(images_S, labels_S, strict=True):
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
      logits = model(pixel_values=image_B).logits
    loss = torch.nn.functional.cross_entropy(logits.float(), label_B)
    loss.backward()
    optimizer.step()
    total += loss.item()
  return total / len(labels_S)
