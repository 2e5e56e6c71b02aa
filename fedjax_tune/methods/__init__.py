"""The methods, by name. A new method needs a file and a line here."""

from fedjax_tune.methods import composed, menus
from fedjax_tune.methods.depth import depthfl, fedra, inclusivefl, uniform
from fedjax_tune.methods.drift import feddyn, scaffold
from fedjax_tune.methods.facts import Method
from fedjax_tune.methods.heterotune import checks, heterotune
from fedjax_tune.methods.personal import fedper, local_only
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
  'fedra': Method(
    fedra.build, fedra.check, menus=menus.depth, source='arXiv 2311.11227'
  ),
  'all_large': Method(uniform.build_all_large, source='baseline'),
  'all_small': Method(
    uniform.build_all_small, menus=menus.depth, source='baseline'
  ),
  'exclusivefl': Method(
    uniform.build_exclusivefl,
    uniform.check_exclusivefl,
    menus=menus.depth,
    source='baseline',
  ),
  'inclusivefl': Method(
    inclusivefl.build, inclusivefl.check, menus=menus.depth, source='KDD 2022'
  ),
  'depthfl': Method(
    depthfl.build, depthfl.check, menus=menus.depth, source='ICLR 2023'
  ),
  'raffm': Method(
    raffm.build, raffm.check, menus=menus.space, source='arXiv 2310.00247'
  ),
  'heterofl': Method(
    heterofl.build, rates.check, menus=menus.width, source='ICLR 2021'
  ),
  'fedrolex': Method(
    fedrolex.build, fedrolex.check, menus=menus.width, source='NeurIPS 2022'
  ),
  'fjord': Method(
    fjord.build, rates.check, menus=menus.width, source='NeurIPS 2021'
  ),
  'federated_dropout': Method(
    federated_dropout.build,
    rates.check,
    menus=menus.width,
    source='arXiv 1812.07210',
  ),
  'prunefl': Method(prunefl.build, prunefl.check, source='arXiv 1909.12326'),
  'prism': Method(prism.build, prism.check, source='arXiv 2208.13141'),
  'fedit': Method(
    ranks.build_fedit, ranks.check, menus=menus.rank, source='arXiv 2305.05644'
  ),
  'rbla': Method(
    ranks.build_rbla, ranks.check, menus=menus.rank, source='arXiv 2408.08699'
  ),
  'ffa_lora': Method(
    ranks.build_ffa_lora,
    ranks.check,
    menus=menus.rank,
    source='arXiv 2403.12313',
  ),
  'hetlora': Method(
    hetlora.build, ranks.check, menus=menus.rank, source='arXiv 2401.06432'
  ),
  'flexlora': Method(
    products.build_flexlora,
    products.check,
    menus=menus.rank,
    source='arXiv 2402.11505',
  ),
  'flora': Method(
    products.build_flora,
    products.check_flora,
    menus=menus.rank,
    source='arXiv 2409.05976',
  ),
  'fedex_lora': Method(
    products.build_fedex_lora,
    products.check,
    menus=menus.rank,
    source='arXiv 2410.09432',
  ),
  'composed': Method(
    composed.build, composed.check, menus=menus.composed, source='ours'
  ),
  'fedper': Method(fedper.build, source='arXiv 1912.00818'),
  'local_only': Method(local_only.build, menus=menus.depth, source='baseline'),
  'scaffold': Method(scaffold.build, scaffold.check, source='arXiv 1910.06378'),
  'feddyn': Method(feddyn.build, feddyn.check, source='arXiv 2111.04263'),
  'heterotune': Method(
    heterotune.build,
    checks.check,
    several_models=True,
    source='arXiv 2411.16796, reconstructed',
  ),
}
