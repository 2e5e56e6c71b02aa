"""Fields of config.json that change what a model computes.

A reader takes the fields that it knows. Other fields may be notes
(`transformers_version`), or may change what the model computes
(`quantization_config`, or fields of related families, which files sometimes
have). The second kind is refused unless the field is empty or off; fields in no
list here are named.
"""

import pathlib
import re

from fedjax_tune.models.families import FAMILIES
from fedjax_tune.typing import Json

# Fields that must say nothing (null, false, 0, empty), or one of these values.
_NEUTRAL: dict[str, tuple[object, ...]] = {
  # Other weights, or other code that reads them.
  'auto_map': (),
  'compression_config': (),
  'pruned_heads': (),
  'quantization': (),
  'quantization_config': (),
  'transformers_weights': ('model.safetensors',),
  # What attends to what.
  'add_cross_attention': (),
  'attention_type': ('full', 'full_attention', 'original_full'),
  'cross_attention_hidden_size': (),
  'is_decoder': (),
  'is_encoder_decoder': (),
  'attention_window': (),
  'sliding_window': (),
  'use_sliding_window': (),
  'no_rope_layers': (),
  'clip_qkv': (),
  # Positions.
  'alibi': (),
  'position_embedding_type': ('absolute',),
  'rope_interleaved': (),
  'rotary_pct': (1,),
  'rotary_emb_fraction': (1,),
  'use_rotary_embeddings': (),
  'use_relative_position_bias': (),
  'use_shared_relative_position_bias': (),
  # Scales and caps.
  'attention_multiplier': (),
  'attn_logit_softcapping': (),
  'embedding_multiplier': (1,),
  'final_logit_softcapping': (),
  'logit_scale': (1,),
  'logits_scaling': (1,),
  'query_pre_attn_scalar': (),
  'residual_multiplier': (1,),
  'scale_embedding': (),
  'scale_emb': (1,),
  # Other blocks.
  'num_experts': (),
  'num_local_experts': (),
  'n_routed_experts': (),
  'num_register_tokens': (),
  'parallel_attn': (),
  'use_parallel_residual': (),
  'qk_layernorm': (),
  'qk_norm': (),
  'use_qk_norm': (),
  'use_bias': (),
  'use_mean_pooling': (),
  'use_swiglu_ffn': (),
}
_WHY = {
  'auto_map': 'the code that it names is not run',
  'quantization_config': 'the weights must be dequantised first',
}
# Read elsewhere in this package, or changing nothing in a forward pass.
_KNOWN = frozenset(
  re.findall(
    r'\S+',
    """
  _name_or_path _commit_hash _attn_implementation _attn_implementation_autoset
  activation adapters apply_layernorm architectures attention_bias
  attention_dropout attention_probs_dropout_prob attn_implementation
  bos_token_id chunk_size_feed_forward classifier_dropout cls_token_id
  custom_pipelines dim directionality do_lower_case drop_path_rate dropout dtype
  encoder_stride eos_token_id finetuning_task fused_qkv gradient_checkpointing
  head_dim hidden_act hidden_dim hidden_dropout hidden_dropout_prob hidden_size
  id2label image_size initializer_range intermediate_size is_llama_config
  label2id language layer_norm_eps layer_types layerscale_value mask_token_id
  max_position_embeddings max_window_layers mlp_bias mlp_ratio model_max_length
  model_type n_heads n_layers name name_or_path num_attention_heads num_channels
  num_hidden_layers num_key_value_heads num_labels
  original_max_position_embeddings out_features out_indices output_attentions
  output_hidden_states output_past pad_token_id partial_rotary_factor patch_size
  pooler_act pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers
  pooler_output_size pooler_size_per_head pooler_type pretraining_tp problem_type
  qa_dropout qkv_bias reshape_hidden_states return_dict rms_norm_eps
  rope_parameters rope_scaling rope_theta sep_token_id seq_classif_dropout
  sinusoidal_pos_embds stage_names task_specific_params tie_encoder_decoder
  tie_weights_ tie_word_embeddings tokenizer_class torch_dtype torchscript
  transformers.js_config transformers_version type_vocab_size unsloth_fixed
  unsloth_version use_bfloat16 use_cache use_mask_token use_return_dict vocab_size
  assistant_confidence_threshold assistant_lookbehind bad_words_ids
  begin_suppress_tokens decoder_start_token_id diversity_penalty do_sample
  early_stopping encoder_no_repeat_ngram_size encoder_repetition_penalty
  epsilon_cutoff eta_cutoff exponential_decay_length_penalty
  forced_bos_token_id forced_eos_token_id length_penalty max_length max_new_tokens
  min_length no_repeat_ngram_size num_assistant_tokens
  num_assistant_tokens_schedule num_beam_groups num_beams num_return_sequences
  output_scores prefix remove_invalid_values repetition_penalty
  return_dict_in_generate suppress_tokens target_lookbehind temperature top_k
  top_p typical_p
  """,
  )
)
# What `transformers` calls the models of each family, and their relatives.
_CLASSES = {family.title: name for name, family in FAMILIES.items()} | {
  'Dinov2WithRegisters': 'dinov2_with_registers',
  'XLMRoberta': 'xlm-roberta',
  'Camembert': 'camembert',
  'Electra': 'electra',
  'Mistral': 'mistral',
  'Mixtral': 'mixtral',
  'Qwen2': 'qwen2',
  'Gemma': 'gemma',
}


def check(raw: Json, path: pathlib.Path) -> tuple[str, ...]:
  """Checks the fields of config.json that no reader takes.

  Args:
    raw: The content of config.json.
    path: Begins every message.

  Returns:
    What to tell the user.

  Raises:
    ValueError: A field says that the model computes something else, or
      `architectures` names a model of another family.
  """
  for field, neutral in _NEUTRAL.items():
    value = raw.get(field)
    if value and value not in neutral:
      why = _WHY.get(field, 'it would change what the model computes')
      raise ValueError(
        f'{path}: {field}={_describe(value)} is not supported: {why}.'
      )
  kinds = raw.get('layer_types') or []
  if not isinstance(kinds, list) or set(map(str, kinds)) - {'full_attention'}:
    raise ValueError(
      f'{path}: layer_types={_describe(kinds)} is not supported, only '
      "'full_attention'."
    )
  blocks = raw.get('num_hidden_layers')
  if kinds and len(kinds) != blocks:
    raise ValueError(
      f'{path}: layer_types={_describe(kinds)} must have one entry for each of '
      f'num_hidden_layers={blocks}.'
    )
  _check_classes(raw, path)
  unknown = sorted(raw.keys() - _KNOWN - _NEUTRAL.keys())
  if not unknown:
    return ()
  shown = ', '.join(unknown[:10]) + (', ...' if len(unknown) > 10 else '')
  return (f'{path}: fields that are not known here, and not read: {shown}.',)


def _check_classes(raw: Json, path: pathlib.Path) -> None:
  """Raises a ValueError if `architectures` names another family."""
  classes = raw.get('architectures') or []
  if not isinstance(classes, list):
    raise ValueError(f'{path}: architectures={classes!r} must be a list.')
  for name in classes:
    found = re.fullmatch(r'(\w+?)(Model|For[A-Z]\w*|LMHeadModel)', str(name))
    family = _CLASSES.get(found[1]) if found else None
    if family and family != raw['model_type']:
      raise ValueError(
        f'{path}: architectures={classes!r} is of model_type={family!r}, but '
        f'model_type is {raw["model_type"]!r}.'
      )


def _describe(value: object) -> str:
  """Shows a value, or only the method of a quantisation."""
  if isinstance(value, dict) and 'quant_method' in value:
    return f'{{quant_method: {value["quant_method"]!r}, ...}}'
  shown = repr(value)
  return shown if len(shown) <= 60 else shown[:57] + '...'
