"""Counted operations and costs, by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import tiny

from fedjax_tune.costs import cost, flops
from fedjax_tune.models import primitives


def _shape(*sizes):
  return jax.ShapeDtypeStruct(sizes, jnp.float32)


def test_a_product():
  product = lambda a, b: jnp.einsum('bij,bjk->bik', a, b)
  assert flops.count_flops(product, _shape(7, 2, 3), _shape(7, 3, 5)) == (
    2 * 7 * 2 * 3 * 5
  )


def test_a_loop_counts_every_turn():
  def loop(x, w):
    return jax.lax.scan(lambda c, _: (c @ w, None), x, None, length=6)[0]

  once = 2 * 4 * 3 * 3
  assert flops.count_flops(loop, _shape(4, 3), _shape(3, 3)) == 6 * once
  nested = jax.jit(jax.checkpoint(lambda x, w: loop(loop(x, w), w)))
  assert flops.count_flops(nested, _shape(4, 3), _shape(3, 3)) == 12 * once


def test_a_branch_counts_its_dearest():
  def branch(x, w):
    return jax.lax.cond(x[0, 0] > 0, lambda: x @ w @ w, lambda: x @ w)

  assert flops.count_flops(branch, _shape(4, 3), _shape(3, 3)) == (
    2 * 2 * 4 * 3 * 3
  )


def test_a_gradient_nobody_asks_for_is_free():
  N, I, O, R = 11, 5, 7, 2
  shapes = _shape(N, I), _shape(I, O), _shape(I, R), _shape(R, O)
  seed = jnp.zeros(2, jnp.uint32)

  def loss(*args):
    return jnp.sum(jnp.square(primitives.lora_dense(*args, seed, 1.0, 0.1)))

  forward = 2 * N * (I * O + I * R + R * O)
  assert flops.count_flops(loss, *shapes) == forward
  # Of A and B: g = dy B', dA = x' g, dB = h' dy; no input, no kernel.
  adapters = 2 * N * (R * O + I * R + R * O)
  assert flops.count_flops(jax.grad(loss, (2, 3)), *shapes) == (
    forward + adapters
  )
  inputs = 2 * N * (R * O + I * O + I * R)
  assert flops.count_flops(jax.grad(loss, 0), *shapes) == forward + inputs


def test_the_cost_of_a_client_by_hand():
  run = tiny.run(tiny.experiment())
  sig = tiny.signature(run.algorithm, 1)
  B, P, D, R, K, N = 5, 48, 6, 2, tiny.CLASSES, 3
  shapes = jax.eval_shape(lambda: tiny.batch(tiny.STACK_SIZE, B))
  got = cost.client_cost(run.algorithm, sig, shapes)
  assert sig['layer'] == N
  assert got.base_params == (P + 1) * D + N * (D + 1) * D
  theta = (P + D) * R + N * 2 * D * R + (D + 1) * K
  assert got.theta_params == theta
  assert got.theta_bytes == 4 * theta
  assert got.base_bytes == 4 * got.base_params
  embed = 2 * B * (P * D + P * R + R * D) + 2 * B * (2 * R * D + P * R)
  block = 2 * B * (D * D + 2 * D * R) + 2 * B * (D * D + 4 * D * R)
  head = 3 * 2 * B * D * K
  assert got.flops == embed + N * block + head


def test_what_a_program_traced_is_counted_without_another_trace():
  run, traced = tiny.run(tiny.experiment()), []
  loss = run.algorithm.client.loss

  def noting(model, batch, context, key):
    traced.append(context.sig)
    return loss(model, batch, context, key)

  client = dataclasses.replace(run.algorithm.client, loss=noting)
  algorithm = dataclasses.replace(run.algorithm, client=client)
  planner = dataclasses.replace(run.planner, algorithm=algorithm)
  run = dataclasses.replace(run, algorithm=algorithm, planner=planner)
  sigs = set(run.engine.programs.compiled)
  assert len(traced) == len(sigs) > 1
  batches = run.planner.plan(0).works[0].own.batches
  one = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape[2:], x.dtype), batches
  )
  for sig in sigs:
    place = run.engine.place(sig)
    assert cost.client_cost(algorithm, sig, one, place=place).flops > 0
  assert len(traced) == len(sigs)
