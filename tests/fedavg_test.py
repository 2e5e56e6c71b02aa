"""The law that every method is FedAvg where everyone holds everything."""

import functools

import jax
import pytest
import tiny

from fedjax_tune.methods.raffm import prism

_FULL = {'budgets': (tiny.DEPTH,) * 4}
_WHOLE = {
  'width': {'rates': (1.0,)},
  'raffm': {'embed': (1.0,), 'layers': (1.0,)},
  'rank': {'ranks': (2,)},
}
# The port of DepthFL trains more classifiers than the model has, HeteroTune
# has several models, PriSM trains factors, SCAFFOLD and FedDyn correct drift,
# FedPer's heads are the clients', and alone nobody averages,
# and of these methods of ranks the point is to be no plain mean.
_OTHERS = (
  'all_large',
  'heterotune',
  'prism',
  'scaffold',
  'feddyn',
  'fedper',
  'local_only',
  'depthfl:fedra_port',
  'ffa_lora',
  'hetlora',
  'flexlora',
  'flora',
  'fedex_lora',
  'composed:raffm+hetlora',
  'composed:fedra+raffm+hetlora',
  # Its stack has other adapters.
  'composed:fedra+branches',
)


@functools.cache
def _fedavg():
  run = tiny.run(tiny.experiment('all_large', clients=_FULL))
  return run.rounds(2).theta


@pytest.mark.parametrize('name', [n for n in tiny.CASES if n not in _OTHERS])
def test_everything_selected_everywhere_is_fedavg(name):
  run = tiny.run(tiny.experiment(name, clients=_FULL, **_WHOLE))
  got = jax.tree.map(
    lambda a, b: a.reshape(b.shape), run.rounds(2).theta, _fedavg()
  )
  tiny.assert_close(got, _fedavg(), rtol=1e-3, atol=5e-6)


def _maps(theta):
  """Returns what trained, of each factored map its product."""
  blocks = dict(theta['blocks'])
  maps = {n: m['u'] @ m['v'] for n, m in blocks.pop('mlp').items()}
  return {**theta, 'blocks': blocks}, maps


def test_all_kernels_everywhere_are_fedavg_of_the_factored_model():
  """For a round: then PriSM balances the factors anew, and FedAvg does not."""
  options = {'keep': 1.0, 'frob_decay': 0.0}
  e = tiny.experiment('prism', clients=_FULL, prism=options)
  found = tiny.stack(e.lora.dropout, mlp=True)
  want = tiny.run(
    tiny.experiment('all_large', clients=_FULL), prism.factor(found)
  )
  got = tiny.run(e, found)
  tiny.assert_close(
    _maps(got.rounds(1).theta),
    _maps(want.rounds(1).theta),
    rtol=1e-3,
    atol=5e-6,
  )
