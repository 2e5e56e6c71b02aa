"""What a client of a depth method computes on the stack, and what it should."""

from flax import nnx
import jax
import jax.numpy as jnp
import tiny

from fedjax_tune import selection

found = tiny.stack()


def batch():
  """Returns four examples, the last of which is padding."""
  return tiny.batch(tiny.STACK_SIZE, 4)


def row(method, client):
  """Returns what a client holds."""
  return jax.device_put(method.allocate(0, [client])[0])


def predict(method, theta, axes, name):
  """Returns the outputs of an evaluation."""

  @jax.jit
  def run(theta, base, alloc, images):
    local = selection.select_within(theta, axes, alloc)
    model = found.assemble(base, local, alloc)
    return method.predict(name, model, alloc, images)

  alloc = jax.device_put(method.evaluations()[name])
  return run(theta, found.base, alloc, batch().inputs)


def loss(method, theta, axes, client, rnd=200):
  """Returns a client's loss with its metrics, and its gradients."""
  sig = tiny.signature(method, client)

  def objective(local, base, alloc, examples):
    model = found.assemble(base, local, alloc)
    key = jax.random.key(0)
    return method.loss(sig, model, alloc, examples, key, jnp.int32(rnd))

  alloc = row(method, client)
  local = selection.select_within(theta, axes, alloc)
  grad = jax.jit(jax.value_and_grad(objective, has_aux=True))
  return grad(local, found.base, alloc, batch())


def logits(theta, depth):
  """Returns the logits of the plain model's first blocks."""
  layers = jnp.arange(depth)
  local = selection.select_within(theta, found.axes, {'layer': layers})
  return _plain(local, layers, batch().inputs)


@jax.jit
def _plain(local, layers, images):
  model = nnx.merge(found.graph, nnx.State(local), nnx.State(found.base))
  return model(images, layers)
