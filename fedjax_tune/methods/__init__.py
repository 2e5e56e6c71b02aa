"""The methods, by name. A new one is a file and a line here."""

from fedjax_tune.methods import composed
from fedjax_tune.methods.depth import depthfl, fedra, inclusivefl, uniform
from fedjax_tune.methods.drift import feddyn, scaffold
from fedjax_tune.methods.facts import Method
from fedjax_tune.methods.heterotune import heterotune
from fedjax_tune.methods.personal import fedper
from fedjax_tune.methods.raffm import prism, prunefl, raffm
from fedjax_tune.methods.rank import hetlora, products, ranks
from fedjax_tune.methods.width import fedrolex, fjord, heterofl, rates

METHODS: dict[str, Method] = {
  'fedra': Method(fedra.build, fedra.check),
  'all_large': Method(uniform.build_all_large),
  'all_small': Method(uniform.build_all_small),
  'exclusivefl': Method(uniform.build_exclusivefl, uniform.check_exclusivefl),
  'inclusivefl': Method(inclusivefl.build, inclusivefl.check),
  'depthfl': Method(depthfl.build, depthfl.check),
  'raffm': Method(raffm.build, raffm.check),
  'heterofl': Method(heterofl.build, rates.check),
  'fedrolex': Method(fedrolex.build, fedrolex.check),
  'fjord': Method(fjord.build, rates.check),
  'federated_dropout': Method(rates.build, rates.check),
  'prunefl': Method(prunefl.build, prunefl.check),
  'prism': Method(prism.build, prism.check),
  'fedit': Method(ranks.build_fedit, ranks.check),
  'rbla': Method(ranks.build_rbla, ranks.check),
  'ffa_lora': Method(ranks.build_ffa_lora, ranks.check),
  'hetlora': Method(hetlora.build, ranks.check),
  'flexlora': Method(products.build_flexlora, products.check),
  'flora': Method(products.build_flora, products.check),
  'fedex_lora': Method(products.build_fedex_lora, products.check),
  'composed': Method(composed.build, composed.check),
  'fedper': Method(fedper.build),
  'scaffold': Method(scaffold.build, scaffold.check),
  'feddyn': Method(feddyn.build, feddyn.check),
  'heterotune': Method(heterotune.build, heterotune.check, several_models=True),
}
