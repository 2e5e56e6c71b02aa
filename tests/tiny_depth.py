"""What a client of a depth method computes on the stack, and what it should."""

from flax import nnx
import jax
import jax.numpy as jnp
import tiny

from fedjax_tune import selection
from fedjax_tune.engine.algorithm import Context

found = tiny.stack()


def batch():
  """Returns four examples, the last of which is padding."""
  return tiny.batch(tiny.STACK_SIZE, 4)


def row(algorithm, client):
  """Returns what a client holds."""
  return jax.device_put(algorithm.rule.draw(0, [client])[0])


def predict(algorithm, name):
  """Returns the outputs of an evaluation."""
  model = algorithm.model

  @jax.jit
  def run(theta, base, held, images):
    local = selection.select_within(theta, model.axes, held)
    whole = model.assemble(base, local, held)
    return algorithm.evaluation.predict(name, whole, held, images)

  held = jax.device_put(algorithm.evaluation.models[name])
  return run(model.theta, model.base, held, batch().inputs)


def loss(algorithm, client, rnd=200):
  """Returns a client's loss with its metrics, and its gradients."""
  model = algorithm.model
  sig = tiny.signature(algorithm, client)

  def objective(local, base, held, examples):
    context = Context(sig, held, {}, (), (), jnp.float32(0.1), jnp.int32(rnd))
    whole = model.assemble(base, local, held)
    return algorithm.client.loss(whole, examples, context, jax.random.key(0))

  held = row(algorithm, client)
  local = selection.select_within(model.theta, model.axes, held)
  grad = jax.jit(jax.value_and_grad(objective, has_aux=True))
  return grad(local, model.base, held, batch())


def logits(theta, depth):
  """Returns the logits of the plain model's first blocks."""
  layers = jnp.arange(depth)
  local = selection.select_within(theta, found.axes, {'layer': layers})
  return _plain(local, layers, batch().inputs)


@jax.jit
def _plain(local, layers, images):
  model = nnx.merge(found.graph, nnx.State(local), nnx.State(found.base))
  return model(images, layers)
