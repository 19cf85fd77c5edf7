"""AlexNet (Krizhevsky, Sutskever and Hinton, 2012) in JAX and Flax: one column is the program."""

__version__ = "0.1.0"
