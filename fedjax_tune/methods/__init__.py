"""The methods, by name. A new one is a file and a line here."""

from fedjax_tune.methods import (
  depthfl,
  fedra,
  fjord,
  heterotune,
  inclusivefl,
  prism,
  prunefl,
  raffm,
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
  'heterofl': width.build_heterofl,
  'fedrolex': width.build_fedrolex,
  'fjord': fjord.build,
  'federated_dropout': width.build_federated_dropout,
  'prunefl': prunefl.build,
  'prism': prism.build,
  'heterotune': heterotune.build,
}
