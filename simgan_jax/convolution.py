"""Convolutions of all networks, with a kernel gradient that suits the backend.

Shapes: images `[B, H, W, C]`, kernels `[h, w, C, O]`.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from simgan_jax import backend

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")
# Entries of images and gradient, 1 MB, up to which a CPU multiplies all images at once.
_FEW = 2**18


def conv(
    x: jax.Array, kernel: jax.Array, *, stride: int = 1, padding: str = "SAME", dtype: jnp.dtype | None = None
) -> jax.Array:
    """Convolution of `[B, H, W, C]` with a kernel `[h, w, C, O]`: `[B, H', W', O]`; padding is "SAME" or "VALID".

    Differentiable any number of times in reverse mode, not in forward mode. Computed, as are its gradients, in `dtype`
    (that of the backend if None); what comes in, goes out and is kept has the type of `x`.
    """
    kept, dtype = x.dtype, backend.compute_dtype() if dtype is None else dtype
    x, kernel = x.astype(dtype), kernel.astype(dtype)
    if kernel.shape[:2] == (1, 1) and stride == 1:
        return (x @ kernel.reshape(kernel.shape[2:])).astype(kept)
    return _conv(x, kernel, stride, padding).astype(kept)


def _plain(x: jax.Array, kernel: jax.Array, stride: int, padding: str) -> jax.Array:
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=_DIMENSIONS)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv(x: jax.Array, kernel: jax.Array, stride: int, padding: str) -> jax.Array:
    return _plain(x, kernel, stride, padding)


def _forward(x: jax.Array, kernel: jax.Array, stride: int, padding: str) -> tuple[jax.Array, tuple]:
    return _plain(x, kernel, stride, padding), (x, kernel)


def _backward(stride: int, padding: str, saved: tuple, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    if not backend.has_slow_convolution_gradients():
        return jax.vjp(lambda x, kernel: _plain(x, kernel, stride, padding), x, kernel)[1](g)
    to_x = input_gradient(kernel, g, size=x.shape[1:3], stride=stride, padding=padding)
    return to_x, kernel_gradient(x, g, size=kernel.shape[:2], stride=stride, padding=padding)


_conv.defvjp(_forward, _backward)


def input_gradient(
    kernel: jax.Array, g: jax.Array, *, size: tuple[int, int], stride: int = 1, padding: str = "SAME"
) -> jax.Array:
    """Gradient `[B, H, W, C]` of a loss by the convolution's input, as a forward convolution.

    Args:
      kernel: `[h, w, C, O]`.
      g: `[B, H', W', O]`, the loss's gradient by the convolution's output.
      size: `(H, W)` of the input.
    """
    pads = jax.lax.padtype_to_pads(size, kernel.shape[:2], (stride, stride), padding)
    # Each entry of g goes back to where its window began; before the first and behind the last there is room for the
    # rest of a window, less what was padded.
    edges = []
    for extent, window, entries, (low, _) in zip(size, kernel.shape[:2], g.shape[1:3], pads, strict=True):
        before = window - 1 - low
        edges.append((before, extent + window - 1 - before - ((entries - 1) * stride + 1)))
    turned = kernel[::-1, ::-1].swapaxes(2, 3)
    return jax.lax.conv_general_dilated(
        g, turned, (1, 1), edges, lhs_dilation=(stride, stride), dimension_numbers=_DIMENSIONS
    )


def kernel_gradient(
    x: jax.Array, g: jax.Array, *, size: tuple[int, int], stride: int = 1, padding: str = "SAME"
) -> jax.Array:
    """Gradient `[h, w, C, O]` of a loss by the kernel, as matrix products.

    Args:
      x: `[B, H, W, C]`, the convolution's input.
      g: `[B, H', W', O]`, the loss's gradient by the convolution's output.
      size: `(h, w)` of the kernel.
    """
    pads = jax.lax.padtype_to_pads(x.shape[1:3], size, (stride, stride), padding)
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    # The product is fastest with the narrower factor transposed on its left.
    features_first = g.shape[-1] <= size[1] * x.shape[-1]
    products = functools.partial(_kernel_products, size=size, stride=stride, features_first=features_first)
    if x.size + g.size <= _FEW:
        total = products(x, g)
    else:
        # Image by image, so that what is unfolded stays in the cache and its memory does not grow with the batch.
        def add(total: jax.Array, image: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
            return total + products(image[0][None], image[1][None]), None

        shape = jax.eval_shape(products, x[:1], g[:1])
        total, _ = jax.lax.scan(add, jnp.zeros(shape.shape, shape.dtype), (x, g))
    return (total.mT if features_first else total).reshape(*size, x.shape[-1], g.shape[-1])


def _kernel_products(
    x: jax.Array, g: jax.Array, *, size: tuple[int, int], stride: int, features_first: bool
) -> jax.Array:
    """The kernel's gradient `[h, w C, O]`, or `[h, O, w C]`, as h matrix products over the pixels of padded images."""
    rows, columns = g.shape[1:3]
    # Unfolded along the rows alone: the other direction is a window of whole rows, which costs no rearranging.
    taps = [x[:, :, j : j + (columns - 1) * stride + 1 : stride] for j in range(size[1])]
    unfolded = jnp.concatenate(taps, -1)
    windows = [unfolded[:, i : i + (rows - 1) * stride + 1 : stride] for i in range(size[0])]
    matrices = [window.reshape(-1, size[1] * x.shape[-1]) for window in windows]
    g = g.reshape(-1, g.shape[-1])
    return jnp.stack([g.T @ matrix if features_first else matrix.T @ g for matrix in matrices])


class Conv(nn.Module):
    """`conv` as a module; parameters `kernel` (He normal) and, unless `use_bias` is off, `bias` (zeros)."""

    features: int
    kernel_size: tuple[int, int]
    stride: int = 1
    padding: str = "SAME"
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = nn.initializers.he_normal()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", self.kernel_init, (*self.kernel_size, x.shape[-1], self.features))
        x = conv(x, kernel, stride=self.stride, padding=self.padding)
        if self.use_bias:
            x = x + self.param("bias", nn.initializers.zeros_init(), (self.features,))[None, None, None]
        return x
