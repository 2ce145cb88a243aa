"""What is done otherwise on a CPU than on a GPU or TPU; the one place that asks for the backend."""

import jax
import jax.numpy as jnp


def has_slow_convolution_gradients() -> bool:
    """Whether XLA's own convolution gradients are slow on the default backend: by the kernel, and inside a scan.

    True on the CPU (jax issue 12868): the kernel's gradient takes several times as long as the forward pass, and
    every convolution gradient some twenty times as long inside `lax.scan` as outside.
    """
    return jax.default_backend() == "cpu"


def compute_dtype() -> jnp.dtype:
    """What convolutions are computed in: bfloat16 on a GPU or TPU, whose matrix units are made for it, else float32.

    Parameters, losses, sums over a batch and optimisers are float32 everywhere.
    """
    return jnp.dtype(jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16)


def block_size() -> int | None:
    """Images at a time that a gradient is summed over on the default backend; None for the whole batch.

    What a few images leave behind stays in a CPU's cache; an accelerator wants all of them at once.
    """
    return 4 if jax.default_backend() == "cpu" else None


def images_at_once() -> int:
    """Images that a network reads or refines at a time: as many as leave their activations in a CPU's cache."""
    return 20 if jax.default_backend() == "cpu" else 500


def drawings() -> int:
    """Captchas at a time that are drawn, or whose drawings settle: as many as a CPU's cache holds."""
    return 50 if jax.default_backend() == "cpu" else 512


def programs_at_once() -> int:
    """Programs of few and small operations that run side by side: two, as one leaves a CPU's cores waiting for it."""
    return 2 if jax.default_backend() == "cpu" else 1
