"""Clients of different rank: their scale, their ranks, and what they move."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import tiny
import torch

from fedjax_tune import config, selection
from fedjax_tune.costs import cost
from fedjax_tune.engine import store
from fedjax_tune.engine.slabs import Signature
from fedjax_tune.methods import METHODS
from fedjax_tune.methods.rank import adapters, hetlora
from fedjax_tune.models import linear
from fedjax_tune.models import peft as tuned

_NAMES = (
  'fedit', 'rbla', 'ffa_lora', 'hetlora', 'flexlora', 'flora', 'fedex_lora'
)  # fmt: skip


# -- the scale


@pytest.mark.parametrize('rank', [4, 2, 1])
@pytest.mark.parametrize('scaling', ['common', 'client'])
def test_a_client_computes_what_peft_does(scaling, rank):
  """Also where it holds less than the server: alpha / r, or one alpha / R."""
  server, alpha, ins, outs = 4, 6.0, 5, 3
  e = config.Experiment(rank=config.Rank(scaling=scaling))
  e.lora = config.Lora(server, alpha, dropout=0.0, targets=('attn.proj',))
  adapter: Any = tuned.adapters(e)['attn.proj']
  layer = linear.Linear(
    (('embed', ins),), (('ffn', outs),), adapter=adapter, rngs=tiny.nnx.Rngs(0)
  )
  found = tiny.foundation.split(layer, 1)
  theta, base = tiny.noise(found.theta, 0), tiny.noise(found.base, 1)
  held = selection.select_within(theta, found.axes, {'rank': rank})
  x = np.random.default_rng(2).normal(size=(7, ins)).astype(np.float32)

  theirs_alpha: Any = alpha if scaling == 'client' else alpha * rank / server
  lora = peft.LoraConfig(
    r=rank,
    lora_alpha=theirs_alpha,
    target_modules=['0'],
  )
  model = torch.nn.Sequential(torch.nn.Linear(ins, outs))
  theirs = peft.inject_adapter_in_model(lora, model)
  tensors = {
    '0.base_layer.weight': base['kernel'].T,
    '0.base_layer.bias': base['bias'],
    '0.lora_A.default.weight': held['lora_a'].T,
    '0.lora_B.default.weight': held['lora_b'].T,
  }
  theirs.load_state_dict(
    {name: torch.tensor(np.asarray(t)) for name, t in tensors.items()}
  )
  with torch.no_grad():
    want = theirs(torch.tensor(x)).numpy()
  layer: Any = found.merge(base, held)
  np.testing.assert_allclose(layer(x), want, atol=1e-5)


# -- who holds what


def test_clients_take_the_ranks_in_turn():
  e = tiny.experiment('fedit', lora={'rank': 3}, rank={'ranks': (3, 1)})
  algorithm = tiny.build(e, tiny.stack(0.0, 3), (4,) * 5)
  held = [row['rank'] for row in algorithm.rule.draw(0, [0, 1, 2, 4])]
  assert held == [3, 1, 3, 3]


def test_without_ranks_all_have_the_servers():
  e = tiny.experiment('fedit', lora={'rank': 3}, rank={'ranks': ()})
  algorithm = tiny.build(e, tiny.stack(0.0, 3), (4,) * 2)
  assert [row['rank'] for row in algorithm.rule.draw(0, [0, 1])] == [3, 3]


@pytest.mark.parametrize('scaling', ['common', 'client'])
def test_every_rank_is_evaluated(scaling):
  options = {'lora': {'rank': 4}, 'rank': {'ranks': (1, 4, 2, 1)}}
  options['rank']['scaling'] = scaling
  whole = {'layer': 4}
  for name in _NAMES:
    e = tiny.experiment(name, **options)
    found = tiny.build(e, tiny.stack(0.0, 4), (4,) * 4).evaluation
    alone = name == 'flora' or (name, scaling) == ('flexlora', 'client')
    smaller = () if alone else (2, 1)
    assert found.models == {
      'full': whole,
      **{f'rank{r}': {**whole, 'rank': r} for r in smaller},
    }
    assert found.weights == {'full': 1.0}


def test_there_must_be_adapters():
  found = tiny.stack()
  without = tiny.dataclasses.replace(found, axes={'head': found.axes['head']})
  with pytest.raises(ValueError, match=r'lora\.targets=\(\) must name'):
    tiny.build(tiny.experiment('fedit'), without, (4,))


@pytest.mark.parametrize('name', _NAMES)
@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'model': {'tune': 'full'}}, r"model.tune='full' must be 'lora'"),
    (
      {'rank': {'ranks': (1, 1)}},
      r'rank.ranks=\(1, 1\): the largest .* must be lora.rank=2',
    ),
    (
      {'rank': {'ranks': (1, 1, 1, 1, 2)}},
      r'the largest that one of 4 clients has must be lora.rank=2',
    ),
  ],
)
def test_refused(name, changes, message):
  with pytest.raises(ValueError, match=message):
    METHODS[name].check(
      tiny.experiment(name, **changes), {'layer': 4}, (4,) * 4
    )


@pytest.mark.parametrize('name', ['flexlora', 'flora', 'fedex_lora'])
@pytest.mark.parametrize('fields', [{'optimizer': 'fedadam'}, {'lr': 0.5}])
def test_an_exact_mean_is_no_step(name, fields):
  e = tiny.experiment(name, server=fields)
  with pytest.raises(
    ValueError, match=r"server.lr=.* must be 'fedavg' and 1.0"
  ):
    METHODS[name].check(e, {'layer': 4}, (4,) * 4)


# -- bytes


def test_traffic_by_hand():
  """Of a client of rank 1 beside one of rank 2."""
  head, per_rank = 6 * 3 + 3, (48 + 6) + 4 * (6 + 6)
  # The residual's rank is at most three, where its factors are less than it.
  residual = 3 * (48 + 6) + 4 * 6 * 6
  assert 3 * (48 + 6) < 48 * 6
  assert 3 * (6 + 6) >= 6 * 6
  b_alone = 6 + 4 * 6
  want = {
    'fedit': (per_rank + head, per_rank + head),
    'rbla': (per_rank + head, per_rank + head),
    'hetlora': (per_rank + head, per_rank + head),
    'flexlora': (per_rank + head, per_rank + head),
    'ffa_lora': (b_alone + head, b_alone + head),
    'flora': (per_rank + head, 3 * per_rank + head),
    'fedex_lora': (per_rank + head, per_rank + head + residual),
  }
  assert set(want) == set(_NAMES)
  for name, (up, down) in want.items():
    run = tiny.run(tiny.experiment(name))
    sigs = [Signature.of(r) for r in run.algorithm.rule.draw(0, [0, 1])]
    held = functools.partial(cost.held_shapes, run.theta, run.axes)
    got = run.algorithm.traffic(sigs[1], sigs, held)
    assert got == (4 * up, 4 * down), name


# -- HetLoRA


def _hetlora(ranks=(4, 2), **options):
  e = tiny.experiment(
    'hetlora', lora={'rank': 4}, rank={'ranks': ranks}, hetlora=options
  )
  return tiny.run(e, tiny.stack(0.0, 4))


def _pruning(run):
  options = run.experiment.hetlora
  adapted = adapters.find(run.axes)
  return hetlora.Pruning(adapted, options.gamma, options.penalty)


def _ranks(run, state):
  """Returns the ranks that clients have left."""
  start = run.algorithm.client.state
  return store.gather(state.clients, np.arange(4), start)['rank'].tolist()


def test_the_tail_by_hand():
  run = _hetlora(gamma=0.5)
  theta, want = run.theta, 0.0
  for path in (('embed',), ('blocks',)):
    a, b = (
      np.asarray(theta[path[0]][n], np.float64) for n in ('lora_a', 'lora_b')
    )
    norm = lambda x: np.sqrt(np.sum(x**2, (-2, -1)))
    want += np.sum(norm(a[..., 2:]) * norm(b[..., 2:, :]))
  np.testing.assert_allclose(_pruning(run).tail(theta), want, rtol=1e-5)
  # With B = 0, as everything begins, there is a gradient, and it is 0.
  flat = jax.tree.map(jnp.zeros_like, theta)
  start = {
    n: {**theta[n], 'lora_b': flat[n]['lora_b']} for n in ('embed', 'blocks')
  }
  slope = jax.grad(_pruning(run).tail)(start)
  tiny.assert_equal(slope, jax.tree.map(jnp.zeros_like, start))


def test_who_shrinks_its_tail_gives_it_up():
  run = _hetlora(gamma=0.5)
  client = run.algorithm.client
  for k, (current, less) in enumerate([(4, 2), (2, 1), (3, 1), (1, 1)]):
    context = tiny.context(run.algorithm, k)
    context = context._replace(state={'rank': jnp.float32(current)})
    held = selection.select_within(run.theta, run.axes, context.held)
    start = client.init(held, context, jax.random.key(0))
    a, b = start['blocks']['lora_a'], start['blocks']['lora_b']
    assert np.all(a[..., current:] == 0)
    assert np.all(b[:, current:] == 0)
    tiny.assert_equal(a[..., :current], held['blocks']['lora_a'][..., :current])
    for factor, rank in ((-0.1, less), (0.1, current)):
      delta = jax.tree.map(lambda x, f=factor: f * x, start)
      sent = client.finish(start, delta, jnp.float32(1), context)
      assert sent.state['rank'].tolist() == rank


def test_ranks_given_up_stay_up():
  """A large penalty makes everyone prune; zeros stay zeros in training."""
  run = _hetlora(gamma=0.5, penalty=3.0)
  state, key = run.engine.init(), jax.random.key(0)
  ranks = [_ranks(run, state)]
  for rnd in range(3):
    state, _ = run.engine.round(state, run.planner.plan(rnd), key, 0.05)
    ranks.append(_ranks(run, state))
  assert ranks == [[4, 2, 4, 2], [2, 1, 2, 1], [1, 1, 1, 1], [1, 1, 1, 1]]
  # Filled up with zeros by all, what nobody has left is gone; but A stays.
  blocks = state.theta['blocks']
  assert np.all(blocks['lora_b'][:, 2:] == 0)
  assert np.all(blocks['lora_b'][:, 0] != 0)
  # A client that had not pruned would not be taken for one that had.
  context = tiny.context(run.algorithm, 0)
  assert context.state == {'rank': 4}
  start = run.algorithm.client.init(state.theta, context, key)
  assert _pruning(run).current(start) == 4


# -- the frozen weights of a round


def test_clients_train_on_what_the_server_added():
  """A round on grounded weights is a round on such a foundation."""
  run = tiny.run(tiny.experiment('flora'))
  first, planned = run.rounds(1), run.planner.plan(1)
  frozen = run.engine.base(first)
  moved = [
    np.abs(np.asarray(frozen[n]['kernel'] - run.foundation.base[n]['kernel']))
    for n in ('embed', 'blocks')
  ]
  assert min(x.min() for x in moved) > 0
  key = jax.random.key(1)
  got, metrics = run.engine.round(first, planned, key, 0.1)
  found = tiny.dataclasses.replace(run.foundation, base=frozen)
  other = tiny.run(run.experiment, found)
  fresh = other.engine.init()._replace(theta=first.theta)
  want, expected = other.engine.round(fresh, planned, key, 0.1)
  tiny.assert_close(got.theta, want.theta, rtol=1e-5, atol=1e-6)
  add = jax.tree.map(jnp.add, first.memory, want.memory)
  tiny.assert_close(got.memory, add, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(metrics['loss'], expected['loss'], rtol=1e-5)


def test_nothing_is_added_for_clients_that_change_nothing():
  """Though each lacks the largest rank, whose product they don't have."""
  run = tiny.run(
    tiny.experiment(
      'fedex_lora', rank={'ranks': (2, 1, 1, 1)}, clients={'cohort_size': 1}
    )
  )
  state, key, added = run.engine.init(), jax.random.key(0), []
  for rnd in range(8):
    planned = run.planner.plan(rnd)
    if all(member.client for member in planned.members):
      state, _ = run.engine.round(state, planned, key, 0.0)
      added.append(state.memory)
  assert len(added) > 2
  for memory in added:
    zeros = jax.tree.map(jnp.zeros_like, memory)
    tiny.assert_close(memory, zeros, rtol=0, atol=1e-6)
