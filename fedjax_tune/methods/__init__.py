"""The methods, by name. A new one is a file and a line here."""

from fedjax_tune.methods import composed, menus
from fedjax_tune.methods.depth import depthfl, fedra, inclusivefl, uniform
from fedjax_tune.methods.drift import feddyn, scaffold
from fedjax_tune.methods.facts import Method
from fedjax_tune.methods.heterotune import checks, heterotune
from fedjax_tune.methods.personal import fedper
from fedjax_tune.methods.raffm import prism, prunefl, raffm
from fedjax_tune.methods.rank import hetlora, products, ranks
from fedjax_tune.methods.width import (
  federated_dropout,
  fedrolex,
  fjord,
  heterofl,
  rates,
)

METHODS: dict[str, Method] = {
  'fedra': Method(fedra.build, fedra.check, menus=menus.depth),
  'all_large': Method(uniform.build_all_large),
  'all_small': Method(uniform.build_all_small, menus=menus.depth),
  'exclusivefl': Method(
    uniform.build_exclusivefl, uniform.check_exclusivefl, menus=menus.depth
  ),
  'inclusivefl': Method(
    inclusivefl.build, inclusivefl.check, menus=menus.depth
  ),
  'depthfl': Method(depthfl.build, depthfl.check, menus=menus.depth),
  'raffm': Method(raffm.build, raffm.check, menus=menus.space),
  'heterofl': Method(heterofl.build, rates.check, menus=menus.width),
  'fedrolex': Method(fedrolex.build, fedrolex.check, menus=menus.width),
  'fjord': Method(fjord.build, rates.check, menus=menus.width),
  'federated_dropout': Method(
    federated_dropout.build, rates.check, menus=menus.width
  ),
  'prunefl': Method(prunefl.build, prunefl.check),
  'prism': Method(prism.build, prism.check),
  'fedit': Method(ranks.build_fedit, ranks.check, menus=menus.rank),
  'rbla': Method(ranks.build_rbla, ranks.check, menus=menus.rank),
  'ffa_lora': Method(ranks.build_ffa_lora, ranks.check, menus=menus.rank),
  'hetlora': Method(hetlora.build, ranks.check, menus=menus.rank),
  'flexlora': Method(products.build_flexlora, products.check, menus=menus.rank),
  'flora': Method(products.build_flora, products.check, menus=menus.rank),
  'fedex_lora': Method(
    products.build_fedex_lora, products.check, menus=menus.rank
  ),
  'composed': Method(composed.build, composed.check, menus=menus.composed),
  'fedper': Method(fedper.build),
  'scaffold': Method(scaffold.build, scaffold.check),
  'feddyn': Method(feddyn.build, feddyn.check),
  'heterotune': Method(heterotune.build, checks.check, several_models=True),
}
