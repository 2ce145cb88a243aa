"""Simulated + unsupervised learning in JAX: read captchas without one real label.

A library of pure functions; `experiments` holds the commands. Import the modules: `from simgan_jax import losses`.
"""

__version__ = "0.1.0"
