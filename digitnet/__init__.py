"""digitnet: one convolutional network for handwritten digits, in JAX/Flax."""

__version__ = '0.1.0'
