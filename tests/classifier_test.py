import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simgan_jax import classifier, presets
from simgan_jax.config import CaptchaConfig, ClassifierConfig

SEED_CAPTCHA = CaptchaConfig()
TINY = CaptchaConfig(height=16, width=32, length=2, alphabet="abc")
SLOTS = ClassifierConfig(widths=(8, 8), hidden=16)


def shapes(captcha, config):
    params = jax.eval_shape(lambda: classifier.init(jax.random.key(0), captcha, config=config))
    return {jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


def make(key, config):
    return classifier.init(key, TINY, config=config)


def read(params, captcha, config, **options):
    images = jnp.zeros((2, captcha.height, captcha.width, 1))
    return classifier.apply(params, images, captcha, config=config, **options)


def test_seed_has_the_notebooks_layers():
    # Keras: 50x100, conv 48x98, conv 46x96, pool 23x48, conv 21x46, pool 10x23 (the odd row falls away), conv 8x21,
    # pool 4x10, conv 2x8, pool 1x4; 1 * 4 * 128 = 512 features.
    found = shapes(SEED_CAPTCHA, presets.SEED.classifier)
    assert sorted(found.values()) == sorted(
        [
            *((3, 3, 1, 32), (32,)),
            *((3, 3, 32, 128), (128,)),
            *((3, 3, 128, 128), (128,)) * 3,
            *((512, 128), (128,)),
            *((128, 4 * 36), (4 * 36,)),
        ]
    )
    # 9*32+32, 9*32*128+128, three times 9*128*128+128, 512*128+128, four heads of 128*36+36.
    assert sum(map(np.prod, found.values())) == 320 + 36_992 + 3 * 147_584 + 65_664 + 4 * 4_644 == 564_304


@pytest.mark.parametrize("kind", [presets.SEED.classifier, presets.CPU.classifier], ids=lambda config: config.kind)
def test_one_interface(kind):
    params = jax.eval_shape(lambda: classifier.init(jax.random.key(0), SEED_CAPTCHA, config=kind))
    reading = jax.eval_shape(lambda params: read(params, SEED_CAPTCHA, kind), params)
    assert (reading.logits.shape, reading.poses.shape) == ((2, 4, 36), (2, 4, 3))


@pytest.mark.parametrize("widths", [(7, 24), (40, 100)])
def test_slots_of_any_width(widths):
    """Groups of 16 channels, or as many of them as divide the width."""
    found = shapes(TINY, ClassifierConfig(widths=widths, hidden=16))
    assert [found[f"['GroupNorm_{i}']['scale']"] for i in (0, 1)] == [(width,) for width in widths]


def test_slots_parameters_by_hand():
    # Space to depth: 8x16 of 4 channels; convolution without bias and its norm, pool to 4x8, the same again.
    trunk = (9 * 4 * 8 + 16) + (9 * 8 * 8 + 16)
    attention = (8 * 2 + 2) + 4 * 8 * 2
    heads = (8 * 16 + 16) + (16 * 3 + 3) + (16 * 3 + 3)
    assert sum(map(np.prod, shapes(TINY, SLOTS).values())) == trunk + attention + heads


@pytest.mark.parametrize(("height", "width"), [(15, 31), (17, 30), (8, 8)])
def test_slots_read_any_size(height, width):
    captcha = CaptchaConfig(height=height, width=width, length=3, alphabet="abcd")
    params = jax.eval_shape(lambda: classifier.init(jax.random.key(0), captcha, config=SLOTS))
    assert jax.eval_shape(lambda params: read(params, captcha, SLOTS), params).logits.shape == (2, 3, 4)


def test_a_fresh_slot_looks_at_its_own_part(key):
    # A gray image leaves the trunk at zero, so attention is the softmax of its initial bias alone.
    params = make(key, SLOTS)
    poses = np.asarray(jax.jit(lambda params: read(params, TINY, SLOTS))(params).poses)
    x = (np.arange(8) + 0.5) * 2 / 8
    bias = np.exp(-2.0 * (x[:, None] - np.array([0.5, 1.5])) ** 2)
    columns = (bias / bias.sum(axis=0) * ((np.arange(8) + 0.5) * 4)[:, None]).sum(axis=0)
    np.testing.assert_allclose(poses[0], [[8.0, columns[0], 0.0], [8.0, columns[1], 0.0]], atol=1e-4)
    assert columns[0] < 16 < columns[1]


@pytest.mark.parametrize(
    "config",
    [ClassifierConfig(widths=(8,), hidden=16, dropout=0.5), ClassifierConfig(kind="seed", widths=(4, 4), hidden=16)],
)
def test_dropout_needs_keys(key, config):
    init_key, image_key, one, two = jax.random.split(key, 4)
    params = make(init_key, config)
    images = jax.random.uniform(image_key, (2, 16, 32, 1), minval=-1.0)

    @jax.jit
    def logits(dropout_keys):
        return classifier.apply(params, images, TINY, config=config, dropout_keys=dropout_keys).logits

    one, two = (jax.random.split(key, 2) for key in (one, two))
    assert np.array_equal(logits(None), logits(None))
    assert not np.allclose(logits(one), logits(two))
    # An image's own key decides what it loses.
    mixed = logits(jnp.stack([one[0], two[1]]))
    np.testing.assert_allclose(mixed[0], logits(one)[0], rtol=1e-5)
    np.testing.assert_allclose(mixed[1], logits(two)[1], rtol=1e-5)


def test_dropout_keeps_the_mean(key):
    x = jnp.full((500, 3, 40), 2.0)
    first, second = (
        classifier.dropout(jax.random.split(jax.random.clone(key), 500), x, rate=0.3, layer=layer) for layer in (0, 1)
    )
    assert set(np.unique(first).round(4)) == {0.0, np.float32(2.0 / 0.7).round(4)}
    # Four standard deviations of 60,000 draws; layers and images lose entries independently.
    assert abs((np.asarray(first) == 0).mean() - 0.3) < 0.0075
    for other in (second, jnp.roll(first, 1, axis=0)):
        assert abs(((np.asarray(first) == 0) & (np.asarray(other) == 0)).mean() - 0.09) < 0.005
    assert classifier.dropout(None, x, rate=0.3, layer=0) is x


def test_an_image_is_read_alone_as_in_a_batch(key):
    init_key, image_key = jax.random.split(key)
    params = make(init_key, SLOTS)
    images = jax.random.uniform(image_key, (3, 16, 32, 1), minval=-1.0)
    apply = jax.jit(lambda images: classifier.apply(params, images, TINY, config=SLOTS))
    together, alone = apply(images), apply(images[1:2])
    np.testing.assert_allclose(together.logits[1], alone.logits[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(together.poses[1], alone.poses[0], rtol=1e-4, atol=1e-4)


def test_group_norm_is_flaxs(key):
    generator = np.random.default_rng(1)
    x = jnp.asarray(generator.normal(0.5, 2.0, (3, 5, 7, 12)) * np.arange(1, 13), jnp.float32).at[0, ..., :4].set(1.5)
    g = jnp.asarray(generator.normal(size=x.shape), jnp.float32)
    params = {name: jnp.asarray(generator.normal(size=12), jnp.float32) for name in ("scale", "bias")}
    ours, flaxs = classifier.GroupNorm(4), nn.GroupNorm(num_groups=None, group_size=4)
    assert jax.tree.all(jax.tree.map(np.array_equal, ours.init(key, x), flaxs.init(jax.random.clone(key), x)))
    (got, got_vjp), (want, want_vjp) = (
        jax.vjp(lambda params, x, norm=norm: norm.apply({"params": params}, x), params, x) for norm in (ours, flaxs)
    )
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    # The first group of the first image is constant: its slope is a thousand times that of the others.
    for a, b in zip(jax.tree.leaves(got_vjp(g)), jax.tree.leaves(want_vjp(g)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("size", [(4, 6), (5, 6), (4, 7), (5, 7), (1, 1)])
def test_max_pool_and_its_gradient_are_those_of_a_loop(size):
    generator = np.random.default_rng(0)
    rows, columns = size
    x = generator.normal(size=(2, *size, 3)).astype(np.float32) - 3.0  # Zeros in the padding would win.
    want = np.full((2, (rows + 1) // 2, (columns + 1) // 2, 3), -np.inf, np.float32)
    weights = np.asarray(generator.normal(size=want.shape), np.float32)
    slope = np.zeros_like(x)
    for b, i, j, c in np.ndindex(want.shape):
        patch = x[b, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2, c]
        di, dj = np.unravel_index(patch.argmax(), patch.shape)
        want[b, i, j, c], slope[b, 2 * i + di, 2 * j + dj, c] = patch[di, dj], weights[b, i, j, c]
    got, vjp = jax.vjp(classifier._max_pool, jnp.asarray(x))
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(vjp(jnp.asarray(weights))[0], slope)
