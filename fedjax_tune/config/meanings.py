"""Guesses which field or value a user means who uses another name for it."""

from collections.abc import Collection, Sequence
import difflib

# What people call a field who know it from other tools, and its name here: the
# last part of either, or the whole.
_MEANINGS = {
  'learning_rate': 'lr',
  'eta': 'lr',
  'wd': 'weight_decay',
  'bs': 'batch_size',
  'batch': 'batch_size',
  'train_batch_size': 'batch_size',
  'local_epochs': 'epochs',
  'num_epochs': 'epochs',
  'local_steps': 'steps',
  'num_rounds': 'rounds',
  'n_rounds': 'rounds',
  'comm_rounds': 'rounds',
  'num_clients': 'count',
  'n_clients': 'count',
  'clients_per_round': 'cohort_size',
  'clients_per_domain': 'count',
  'fraction_fit': 'cohort_size',
  'r': 'rank',
  'lora_r': 'rank',
  'lora_alpha': 'alpha',
  'dirichlet_alpha': 'alpha',
  'lora_dropout': 'dropout',
  'target_modules': 'targets',
  'mu': 'prox',
  'proximal_mu': 'prox',
  'grad_clip': 'clip_norm',
  'max_grad_norm': 'clip_norm',
  'beta1': 'momentum',
  'tau': 'eps',
  'epsilon': 'eps',
  'resolution': 'image_size',
  'img_size': 'image_size',
  'max_length': 'lengths',
  'max_seq_length': 'lengths',
  'dataset': 'name',
  'model_name': 'weights',
  'model.name': 'weights',
  'model_name_or_path': 'weights',
  'checkpoint': 'weights',
  'pretrained': 'weights',
  'peft': 'tune',
  'peft_type': 'tune',
  'precision': 'dtype',
  'gradient_checkpointing': 'remat',
  'algorithm': 'method',
  'strategy': 'method',
  'random_seed': 'seed',
  'early_stopping': 'patience',
  'eval_interval': 'eval_every',
  'save_every': 'checkpoint_every',
}


def hint(*names: str) -> str:
  """Returns the end of a sentence that suggests names; those that are '' are none.

  >>> hint('lr', 'local.lr'), hint('')
  ('; did you mean lr or local.lr?', '')
  """
  found = ' or '.join(filter(None, names))
  return f'; did you mean {found}?' if found else ''


def like(path: str, known: Sequence[str]) -> str:
  """Returns the end of a sentence: a hint, or '.'.

  Args:
    path: What somebody wrote for a field.
    known: All fields.
  """
  return hint(*near(path, known)) or '.'


def near(path: str, known: Sequence[str]) -> list[str]:
  """Returns fields with the same meaning or last name, or else similar ones."""
  section, _, last = path.rpartition('.')
  meant = _MEANINGS.get(path, _MEANINGS.get(last, last))
  found = [p for p in known if p == meant or p.endswith(f'.{meant}')]
  # Of its own section rather than another.
  own = [p for p in known if section and p.startswith(f'{section}.')]
  found = [p for p in found if p in own] or found
  found = found or [p for p in known if p.startswith(f'{path}.')]
  found = found or difflib.get_close_matches(path, own, n=1)
  return found or difflib.get_close_matches(path, known)


# What people write who know a value by another name.
_VALUES = {
  'fedavg': 'all_large', 'fedprox': 'all_large', 'full_model': 'all_large',
  'hetero_fl': 'heterofl', 'local': 'local_only', 'non_iid': 'dirichlet',
  'noniid': 'dirichlet', 'label_skew': 'dirichlet', 'dir': 'dirichlet',
  'user': 'natural', 'client': 'natural', 'by_client': 'natural',
  'by_domain': 'domain', 'random': 'uniform', 'linear': 'head',
  'linear_probe': 'head', 'probe': 'head', 'finetune': 'full', 'all': 'full',
  'bf16': 'bfloat16', 'float16': 'bfloat16', 'fp16': 'bfloat16',
  'fp32': 'float32', 'f32': 'float32', 'momentum': 'sgd', 'q_proj': 'attn.q',
  'k_proj': 'attn.k', 'v_proj': 'attn.v', 'o_proj': 'attn.proj',
  'query': 'attn.q', 'key': 'attn.k', 'value': 'attn.v',
  'up_proj': 'mlp.up', 'gate_proj': 'mlp.gate', 'down_proj': 'mlp.down',
}  # fmt: skip


def nearest(value: str, names: Collection[str]) -> str:
  """Returns which of the names somebody means, or ''.

  >>> nearest('emoji', ['nico', 'emoji_styles']), nearest('SGD', ['adam', 'sgd'])
  ('emoji_styles', 'sgd')
  """
  lower = value.lower().replace('-', '_')
  if _VALUES.get(lower) in names:
    return _VALUES[lower]
  close = difflib.get_close_matches(lower, names, n=1)
  begun = [name for name in names if len(lower) > 2 and name.startswith(lower)]
  return next(iter([*close, *begun]), '')
