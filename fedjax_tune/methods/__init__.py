"""The methods, by name. A new one is a file and a line here."""

from fedjax_tune.methods import (
  depthfl,
  fedra,
  fedrolex,
  fjord,
  heterofl,
  heterotune,
  hetlora,
  inclusivefl,
  prism,
  products,
  prunefl,
  raffm,
  ranks,
  uniform,
  width,
)

# name -> build(experiment, size of each axis, budget of each client) -> Method
BUILDERS = {
  'fedra': fedra.build,
  'all_large': uniform.build_all_large,
  'all_small': uniform.build_all_small,
  'exclusivefl': uniform.build_exclusivefl,
  'inclusivefl': inclusivefl.build,
  'depthfl': depthfl.build,
  'raffm': raffm.build,
  'heterofl': heterofl.build,
  'fedrolex': fedrolex.build,
  'fjord': fjord.build,
  'federated_dropout': width.build,
  'prunefl': prunefl.build,
  'prism': prism.build,
  'fedit': ranks.FedIT.build,
  'rbla': ranks.Rbla.build,
  'ffa_lora': ranks.FfaLora.build,
  'hetlora': hetlora.build,
  'flexlora': products.FlexLora.build,
  'flora': products.Flora.build,
  'fedex_lora': products.FedexLora.build,
  'heterotune': heterotune.build,
}
