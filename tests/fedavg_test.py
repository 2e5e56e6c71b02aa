"""The law that every method is FedAvg where everyone holds everything."""

import functools

import jax
import pytest
import tiny

_FULL = {'budgets': (tiny.DEPTH,) * 4}
_WHOLE = {
  'width': {'rates': (1.0,)},
  'raffm': {'embed': (1.0,), 'layers': (1.0,)},
  'rank': {'ranks': (2,)},
}
# The port of DepthFL trains more classifiers than the model has, HeteroTune
# has several models, and of these methods of ranks the point is to be no plain
# mean.
_OTHERS = (
  'all_large',
  'heterotune',
  'depthfl:fedra_port',
  'ffa_lora',
  'hetlora',
  'flexlora',
  'flora',
  'fedex_lora',
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
