import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simgan_jax import backend, convolution
from simgan_jax.convolution import Conv, conv


@pytest.fixture(params=["at once", "image by image"])
def way(request, monkeypatch):
    """Kernel gradients in both ways, of all images at once and of one after the other."""
    monkeypatch.setattr(convolution, "_FEW", 2**20 if request.param == "at once" else 0)
    return request.param


def plain(x, kernel, stride, padding):
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def oracle(x, kernel, stride):
    """ "VALID" convolution by loops over the output's pixels."""
    h, w = kernel.shape[:2]
    rows, columns = (x.shape[1] - h) // stride + 1, (x.shape[2] - w) // stride + 1
    y = np.zeros((x.shape[0], rows, columns, kernel.shape[-1]))
    for i, j in itertools.product(range(rows), range(columns)):
        patch = x[:, i * stride : i * stride + h, j * stride : j * stride + w]
        y[:, i, j] = np.einsum("bhwc,hwco->bo", patch, kernel)
    return y


def test_values_are_a_sliding_product():
    generator = np.random.default_rng(0)
    x, kernel = generator.normal(size=(2, 6, 5, 3)), generator.normal(size=(3, 2, 3, 4))
    for stride in (1, 2):
        got = conv(jnp.asarray(x), jnp.asarray(kernel), stride=stride, padding="VALID")
        np.testing.assert_allclose(got, oracle(x, kernel, stride), rtol=1e-4, atol=1e-5)


def test_same_padding_keeps_the_size_and_halves_it_rounded_up():
    x = jnp.ones((1, 5, 8, 1))
    assert conv(x, jnp.ones((3, 3, 1, 2))).shape == (1, 5, 8, 2)
    assert conv(x, jnp.ones((3, 3, 1, 2)), stride=2).shape == (1, 3, 4, 2)
    assert conv(x, jnp.ones((1, 1, 1, 2)), stride=2).shape == (1, 3, 4, 2)
    np.testing.assert_array_equal(conv(x, jnp.ones((3, 3, 1, 1)))[0, 0, :2, 0], [4.0, 6.0])


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize(
    ("size", "kernel_size", "channels", "features", "stride"),
    [
        ((5, 7), (3, 3), 2, 3, 1),
        ((5, 7), (3, 3), 1, 12, 1),  # More features than columns of a patch.
        ((6, 4), (3, 3), 2, 3, 2),
        ((7, 9), (4, 2), 3, 2, 3),
        ((5, 5), (5, 5), 1, 1, 1),
        ((6, 5), (1, 1), 3, 2, 1),
        ((6, 5), (1, 1), 3, 2, 2),
        ((9, 8), (7, 7), 1, 2, 2),
    ],
)
def test_gradients_are_those_of_the_plain_convolution(way, size, kernel_size, channels, features, stride, padding):
    generator = np.random.default_rng(1)
    x = jnp.asarray(generator.normal(size=(3, *size, channels)), jnp.float32)
    kernel = jnp.asarray(generator.normal(size=(*kernel_size, channels, features)), jnp.float32)

    def loss(function):
        return lambda x, kernel: jnp.sum(jnp.sin(function(x, kernel)))

    got = jax.jit(jax.grad(loss(lambda x, kernel: conv(x, kernel, stride=stride, padding=padding)), (0, 1)))(x, kernel)
    want = jax.jit(jax.grad(loss(lambda x, kernel: plain(x, kernel, stride, padding)), (0, 1)))(x, kernel)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_kernel_gradient_is_right_on_every_backend(way):
    generator = np.random.default_rng(2)
    x = jnp.asarray(generator.normal(size=(2, 5, 6, 2)), jnp.float32)
    g = jnp.asarray(generator.normal(size=(2, 3, 3, 3)), jnp.float32)
    _, vjp = jax.vjp(lambda kernel: plain(x, kernel, 2, "SAME"), jnp.zeros((3, 3, 2, 3)))
    got = convolution.kernel_gradient(x, g, size=(3, 3), stride=2)
    np.testing.assert_allclose(got, vjp(g)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("size", "kernel_size"), [((6, 8), (3, 3)), ((7, 5), (3, 3)), ((6, 7), (4, 2)), ((5, 8), (1, 1)), ((5, 6), (5, 2))]
)
def test_input_gradient_is_right_on_every_backend(size, kernel_size, stride, padding):
    generator = np.random.default_rng(6)
    x = jnp.asarray(generator.normal(size=(2, *size, 3)), jnp.float32)
    kernel = jnp.asarray(generator.normal(size=(*kernel_size, 3, 4)), jnp.float32)
    y, vjp = jax.vjp(lambda x: plain(x, kernel, stride, padding), x)
    g = jnp.asarray(generator.normal(size=y.shape), jnp.float32)
    got = convolution.input_gradient(kernel, g, size=size, stride=stride, padding=padding)
    assert got.shape == x.shape
    np.testing.assert_allclose(got, vjp(g)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("count", "sign"), [(2, "dot_general"), (40_000, "scan[")])
def test_the_backend_and_the_number_of_images_decide(count, sign):
    x = jnp.ones((count, 4, 4, 1))
    jaxpr = str(jax.make_jaxpr(jax.grad(lambda k: conv(x, k).sum()))(jnp.ones((3, 3, 1, 1))))
    assert (sign in jaxpr) == backend.has_slow_convolution_gradients() == (jax.default_backend() == "cpu")
    assert ("scan[" in jaxpr) == (sign in jaxpr and count > 2)


def test_second_derivative(way):
    x = jnp.asarray(np.random.default_rng(3).normal(size=(2, 4, 4, 1)), jnp.float32)

    def penalty(function):
        return lambda kernel: jnp.sum(jax.grad(lambda x: jnp.sum(function(x, kernel) ** 2))(x) ** 2)

    kernel = jnp.asarray(np.random.default_rng(4).normal(size=(3, 3, 1, 2)), jnp.float32)
    got = jax.grad(penalty(conv))(kernel)
    np.testing.assert_allclose(got, jax.grad(penalty(lambda x, k: plain(x, k, 1, "SAME")))(kernel), rtol=1e-3)


def test_vmap_is_a_loop(way):
    generator = np.random.default_rng(5)
    x = jnp.asarray(generator.normal(size=(2, 3, 4, 4, 1)), jnp.float32)
    kernels = jnp.asarray(generator.normal(size=(2, 3, 3, 1, 2)), jnp.float32)
    gradient = jax.grad(lambda kernel, x: jnp.sum(jnp.sin(conv(x, kernel))))
    want = jnp.stack([gradient(kernel, image) for kernel, image in zip(kernels, x, strict=True)])
    np.testing.assert_allclose(jax.vmap(gradient)(kernels, x), want, rtol=1e-4, atol=1e-5)


def test_module(key):
    module = Conv(4, (3, 2), stride=2, padding="VALID")
    x = jnp.ones((1, 5, 6, 3))
    params = module.init(key, x)["params"]
    assert jax.tree.map(jnp.shape, params) == {"kernel": (3, 2, 3, 4), "bias": (4,)}
    shifted = {**params, "bias": params["bias"] + 1.0}
    np.testing.assert_allclose(
        np.asarray(module.apply({"params": shifted}, x)), plain(x, params["kernel"], 2, "VALID") + 1.0, rtol=1e-5
    )
    assert set(Conv(4, (1, 1), use_bias=False).init(jax.random.clone(key), x)["params"]) == {"kernel"}
