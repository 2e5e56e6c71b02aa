"""The families of models that Hugging Face's folders may hold.

Each family has a record under its name in config.json (`model_type`). Code that
reads or writes a folder finds the family here by the field `family` of the
model's sizes (`sizes`). Tokenizers are separate, in
`data/tokenizer_classes.py`.
"""

from collections.abc import Callable
import pathlib
from typing import Any, NamedTuple

from fedjax_tune.models import (
  decoder,
  hub_image,
  hub_llama,
  hub_text,
  text,
  vit,
)
from fedjax_tune.models.sizes import Config
from fedjax_tune.typing import Json

# Names of modules, and of parameters outside any: first those in the hub's
# files, then those of the modules of transformers 5.
Names = dict[str, tuple[str, ...]]

_IMAGE_ATTENTION: Names = {
  'attn.q': ('attention.attention.query', 'attention.q_proj'),
  'attn.k': ('attention.attention.key', 'attention.k_proj'),
  'attn.v': ('attention.attention.value', 'attention.v_proj'),
  'attn.proj': ('attention.output.dense', 'attention.o_proj'),
}
_VIT: Names = {
  'norm1': ('layernorm_before',),
  'norm2': ('layernorm_after',),
  'mlp.fc1': ('intermediate.dense', 'mlp.fc1'),
  'mlp.fc2': ('output.dense', 'mlp.fc2'),
}
_DINOV2: Names = {
  'norm1': ('norm1',),
  'norm2': ('norm2',),
  'mlp.fc1': ('mlp.fc1',),
  'mlp.fc2': ('mlp.fc2',),
  'scale1': ('layer_scale1.lambda1',),
  'scale2': ('layer_scale2.lambda1',),
}
_BERT: Names = {
  'attn.q': ('attention.self.query',),
  'attn.k': ('attention.self.key',),
  'attn.v': ('attention.self.value',),
  'attn.proj': ('attention.output.dense',),
  'norm1': ('attention.output.LayerNorm',),
  'mlp.fc1': ('intermediate.dense',),
  'mlp.fc2': ('output.dense',),
  'norm2': ('output.LayerNorm',),
}
_DISTILBERT: Names = {
  'attn.q': ('attention.q_lin',),
  'attn.k': ('attention.k_lin',),
  'attn.v': ('attention.v_lin',),
  'attn.proj': ('attention.out_lin',),
  'norm1': ('sa_layer_norm',),
  'mlp.fc1': ('ffn.lin1',),
  'mlp.fc2': ('ffn.lin2',),
  'norm2': ('output_layer_norm',),
}
_LLAMA: Names = {
  'norm1': ('input_layernorm',),
  'attn.q': ('self_attn.q_proj',),
  'attn.k': ('self_attn.k_proj',),
  'attn.v': ('self_attn.v_proj',),
  'attn.proj': ('self_attn.o_proj',),
  'norm2': ('post_attention_layernorm',),
  'mlp.gate': ('mlp.gate_proj',),
  'mlp.up': ('mlp.up_proj',),
  'mlp.down': ('mlp.down_proj',),
}
_IMAGE_BLOCK = ('encoder.layer.{}', 'layers.{}')
_IMAGE: Names = {
  'embed.patch': ('embeddings.patch_embeddings.projection',),
  'embed.position': ('embeddings.position_embeddings',),
  'norm': ('layernorm',),
  'head': ('classifier',),
}
_TEXT: Names = {
  'embed.word': ('embeddings.word_embeddings.weight',),
  'embed.position': ('embeddings.position_embeddings.weight',),
  'embed.type': ('embeddings.token_type_embeddings.weight',),
  'embed.norm': ('embeddings.LayerNorm',),
}
_LLAMA_OTHERS: Names = {
  'embed.word': ('embed_tokens.weight',),
  'norm': ('norm',),
  'head': ('score',),
  'lm_head': ('lm_head',),
}


class Kind(NamedTuple):
  """What families share that the same model of this package computes.

  Attributes:
    build: (sizes, adapters, remat=, unroll=, rngs=) -> the model.
    parse: (config.json, its path) -> sizes.
    render: (sizes, fields of every family) -> config.json.
    head: The end of a class's name in `transformers`, if it has the usual head.
  """

  build: Callable[..., vit.ViT | text.TextEncoder | decoder.Decoder]
  parse: Callable[[Json, pathlib.Path], Config]
  render: Callable[[Any, Json], Json]
  head: str


class Family(NamedTuple):
  """What Hugging Face calls a family and its tensors.

  Attributes:
    kind: The kind of model that it is.
    title: The beginning of its class names in `transformers`.
    prefix: What a model with a head puts before the names of the base model.
    blocks: The beginnings of the names of a block's tensors, with a field for
      the layer; the first is the one to write.
    parts: The rest of the names of a block's tensors.
    others: The names of tensors outside of blocks.
    processor: For an image family, the type of preprocessor if its file names
      none.
    modules: The beginning of the names of a block's modules in transformers 5,
      if it differs from that in files.
  """

  kind: Kind
  title: str
  prefix: str
  blocks: tuple[str, ...]
  parts: Names
  others: Names
  processor: str = ''
  modules: str = ''


_IMAGES = Kind(
  vit.ViT, hub_image.parse, hub_image.render, 'ForImageClassification'
)
_TEXTS = Kind(
  text.TextEncoder,
  hub_text.parse,
  hub_text.render,
  'ForSequenceClassification',
)
_DECODERS = Kind(
  decoder.Decoder,
  hub_llama.parse,
  hub_llama.render,
  'ForSequenceClassification',
)

# What models of several families put there, so that it tells none of them.
SHARED_PREFIX = 'model.'

FAMILIES = {
  'vit': Family(
    _IMAGES,
    'ViT',
    'vit.',
    _IMAGE_BLOCK,
    _IMAGE_ATTENTION | _VIT,
    _IMAGE,
    'ViTImageProcessor',
    'layers.{}',
  ),
  'deit': Family(
    _IMAGES,
    'DeiT',
    'deit.',
    _IMAGE_BLOCK,
    _IMAGE_ATTENTION | _VIT,
    _IMAGE,
    'DeiTImageProcessor',
    'layers.{}',
  ),
  'dinov2': Family(
    _IMAGES,
    'Dinov2',
    'dinov2.',
    _IMAGE_BLOCK,
    _IMAGE_ATTENTION | _DINOV2,
    _IMAGE,
    'BitImageProcessor',
  ),
  'bert': Family(
    _TEXTS,
    'Bert',
    'bert.',
    ('encoder.layer.{}',),
    _BERT,
    _TEXT | {'pooler': ('pooler.dense',), 'head': ('classifier',)},
  ),
  'roberta': Family(
    _TEXTS,
    'Roberta',
    'roberta.',
    ('encoder.layer.{}',),
    _BERT,
    _TEXT | {'pooler': ('classifier.dense',), 'head': ('classifier.out_proj',)},
  ),
  'distilbert': Family(
    _TEXTS,
    'DistilBert',
    'distilbert.',
    ('transformer.layer.{}',),
    _DISTILBERT,
    _TEXT | {'pooler': ('pre_classifier',), 'head': ('classifier',)},
  ),
  'llama': Family(
    _DECODERS,
    'Llama',
    SHARED_PREFIX,
    ('layers.{}',),
    _LLAMA,
    _LLAMA_OTHERS,
  ),
}
