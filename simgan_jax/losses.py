"""The losses of Shrivastava et al. 2017 (arXiv 1612.07828), one number for each example, nothing averaged.

The discriminator's two logits of a patch mean (real, refined): label 0 is a real image, label 1 a refined synthetic
one, as in the paper, where D is the probability of 'synthetic'. Sums go over patches and over pixels, so that lambda
is in the paper's units whatever the batch size; a plain SGD learning rate scales with the number of patches.

Shapes: `B` examples, images `[B, H, W, C]`, patches `[h, w]` (1 x 1 for a global adversary), `L` characters of `V`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

REAL, REFINED = 0, 1


def psi_identity(images: jax.Array) -> jax.Array:
    """The images themselves (paper 2.1, the default there)."""
    return images


def psi_gradients(images: jax.Array) -> jax.Array:
    """Differences to the right and to the lower neighbour, `[B, H, W, 2C]`; 0 past the last row and column."""
    down = jnp.pad(images[:, 1:] - images[:, :-1], ((0, 0), (0, 1), (0, 0), (0, 0)))
    right = jnp.pad(images[:, :, 1:] - images[:, :, :-1], ((0, 0), (0, 0), (0, 1), (0, 0)))
    return jnp.concatenate([down, right], axis=-1)


def psi_blur(images: jax.Array) -> jax.Array:
    """Images under the 5 x 5 binomial filter (1, 4, 6, 4, 1) / 16 in both directions, edges replicated."""
    for axis in (1, 2):
        padding = [(2, 2) if a == axis else (0, 0) for a in range(4)]
        padded = jnp.pad(images, padding, mode="edge")
        size = images.shape[axis]
        taps = [jax.lax.slice_in_dim(padded, i, i + size, axis=axis) for i in range(5)]
        images = (taps[0] + 4.0 * taps[1] + 6.0 * taps[2] + 4.0 * taps[3] + taps[4]) / 16.0
    return images


def psi_mean(images: jax.Array) -> jax.Array:
    """Mean of the channels, `[B, H, W, 1]` (paper 2.1): colour may change, brightness may not."""
    return images.mean(axis=-1, keepdims=True)


_PSIS = {"identity": psi_identity, "gradients": psi_gradients, "blur": psi_blur, "mean": psi_mean}


def psi(images: jax.Array, *, name: str) -> jax.Array:
    """The feature transform of the self-regularisation with this name: identity, gradients, blur or mean.

    Raises:
      ValueError: another name.
    """
    if name not in _PSIS:
        raise ValueError(f"psi {name!r}: choose one of {', '.join(_PSIS)}")
    return _PSIS[name](images)


def self_regularization(
    refined: jax.Array, synthetic: jax.Array, *, psi: Callable[[jax.Array], jax.Array] = psi_identity
) -> jax.Array:
    """L1 distance of the features, summed over pixels and channels, `[B]` (paper 2.1)."""
    return jnp.abs(psi(refined) - psi(synthetic)).sum(axis=(1, 2, 3))


def local_adversarial(logits: jax.Array, label: int) -> jax.Array:
    """Cross-entropy of `[B, h, w, 2]` against one label for all patches, summed over them, `[B]` (paper 2.2)."""
    return -jax.nn.log_softmax(logits, axis=-1)[..., label].sum(axis=(1, 2))


def refiner_loss(adversarial_logits: jax.Array, regularization: jax.Array, *, lambda_reg: float) -> jax.Array:
    """What the refiner minimises, `[B]` (paper Eq 1 and 4): its images should pass as real, and stay what they were.

    Non-saturating: -log(1 - D(R(x))), with D the probability of 'refined'.

    Args:
      adversarial_logits: `[B, h, w, 2]` of the refined images.
      regularization: `[B]` from `self_regularization`.
    """
    return local_adversarial(adversarial_logits, REAL) + lambda_reg * regularization


def discriminator_loss(refined_logits: jax.Array, real_logits: jax.Array) -> jax.Array:
    """What the discriminator minimises, `[B]` (paper Eq 2), of as many refined as real images `[B, h, w, 2]`."""
    return local_adversarial(refined_logits, REFINED) + local_adversarial(real_logits, REAL)


def accuracy(logits: jax.Array, label: int) -> jax.Array:
    """Share of the patches `[B, h, w, 2]` that are told right, `[B]`; a draw counts as wrong."""
    return (logits[..., label] > logits[..., 1 - label]).mean(axis=(1, 2))


def dead_share(logits: jax.Array) -> jax.Array:
    """Share of the patches `[B, h, w, 2]` whose two logits are exactly equal, `[B]`: a network that says nothing."""
    return (logits[..., 0] == logits[..., 1]).mean(axis=(1, 2))


def character_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Cross-entropy of `[B, L, V]` against labels `[B, L]` in 0 to V - 1, summed over the characters, `[B]`."""
    log_p = jax.nn.log_softmax(logits, axis=-1)
    return -jnp.take_along_axis(log_p, labels[..., None], axis=-1)[..., 0].sum(axis=-1)
