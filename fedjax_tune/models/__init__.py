"""Foundation models in Flax NNX, their primitives and their weights."""
