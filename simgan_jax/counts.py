"""FLOPs and bytes of networks and steps, counted from shapes alone.

A multiplication and an addition are two FLOPs. Counted are convolutions and matrix products, and of a convolution
the taps that lie inside the image; bytes are those of float32 tensors, each read or written once by every product
that it enters, and of the optimiser. What no implementation can do without, so that a time gives a share of the limit.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from simgan_jax.config import CaptchaConfig, ClassifierConfig, Config, DiscriminatorConfig, RefinerConfig

FLOAT = 4


@dataclasses.dataclass(frozen=True)
class Cost:
    """flops and bytes of some work."""

    flops: int = 0
    bytes: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.flops + other.flops, self.bytes + other.bytes)

    def __mul__(self, times: int) -> "Cost":
        return Cost(self.flops * times, self.bytes * times)


class Layer(NamedTuple):
    """A convolution or matrix product. flops: of its forward pass; inputs, outputs, weights: elements."""

    flops: int
    inputs: int
    outputs: int
    weights: int


def taps(size: int, kernel: int, stride: int, padding: str) -> tuple[int, int]:
    """Output positions along one axis, and the taps of all of them that lie inside an image of that size."""
    if padding == "VALID":
        outputs = (size - kernel) // stride + 1
        return outputs, outputs * kernel
    outputs = -(-size // stride)
    before = max(0, (outputs - 1) * stride + kernel - size) // 2
    starts = range(-before, outputs * stride - before, stride)
    return outputs, sum(min(start + kernel, size) - max(start, 0) for start in starts)


def convolution(
    shape: tuple[int, int, int, int], features: int, *, kernel: int = 3, stride: int = 1, padding: str = "SAME"
) -> tuple[Layer, tuple[int, int, int, int]]:
    """A convolution of `[B, H, W, C]`, and the shape of its output."""
    B, H, W, C = shape
    rows, row_taps = taps(H, kernel, stride, padding)
    columns, column_taps = taps(W, kernel, stride, padding)
    layer = Layer(
        flops=2 * B * row_taps * column_taps * C * features,
        inputs=B * H * W * C,
        outputs=B * rows * columns * features,
        weights=kernel * kernel * C * features,
    )
    return layer, (B, rows, columns, features)


def product(batch: int, rows: int, inner: int, columns: int) -> Layer:
    """`batch` products of `[rows, inner]` and `[inner, columns]` matrices; the weights are a batch's second factor."""
    return Layer(
        2 * batch * rows * inner * columns, batch * rows * inner, batch * rows * columns, batch * inner * columns
    )


def refiner_layers(batch: int, captcha: CaptchaConfig, *, config: RefinerConfig) -> list[Layer]:
    """The refiner's convolutions, in order."""
    shape = (batch, captcha.height, captcha.width, 1 + config.latents)
    layers = []
    for _ in range(1 + 2 * config.blocks):
        layer, shape = convolution(shape, config.width, kernel=config.kernel)
        layers.append(layer)
    return [*layers, convolution(shape, 1, kernel=1)[0]]


def discriminator_layers(batch: int, captcha: CaptchaConfig, *, config: DiscriminatorConfig) -> list[Layer]:
    """The discriminator's convolutions, in order."""
    shape = (batch, captcha.height, captcha.width, 1)
    layers = []
    for features, kernel, stride in zip(config.widths, (3, 3, 3, 1), (2, 2, 1, 1), strict=True):
        layer, shape = convolution(shape, features, kernel=kernel, stride=stride)
        layers.append(layer)
    if config.adversary == "global":
        shape = (batch, 1, 1, shape[-1])
    return [*layers, convolution(shape, 2, kernel=1)[0]]


def classifier_layers(batch: int, captcha: CaptchaConfig, *, config: ClassifierConfig) -> list[Layer]:
    """The classifier's convolutions and products, in order."""
    length, vocabulary = captcha.length, len(captcha.alphabet)
    layers = []
    if config.kind == "seed":
        shape = (batch, captcha.height, captcha.width, 1)
        for i, features in enumerate(config.widths):
            layer, shape = convolution(shape, features, padding="VALID")
            layers.append(layer)
            shape = (batch, shape[1] // 2, shape[2] // 2, features) if i else shape
        flat = math.prod(shape[1:])
        return [
            *layers,
            product(1, batch, flat, config.hidden),
            product(1, batch, config.hidden, length * vocabulary),
        ]
    shape = (batch, -(-captcha.height // 2), -(-captcha.width // 2), 4)
    for i, features in enumerate(config.widths):
        layer, shape = convolution(shape, features)
        layers.append(layer)
        shape = shape if i else (batch, -(-shape[1] // 2), -(-shape[2] // 2), features)
    cells = shape[1] * shape[2]
    return [
        *layers,
        convolution(shape, length, kernel=1)[0],
        product(batch, length, cells, shape[-1]),
        product(1, batch * length, shape[-1], config.hidden),
        product(1, batch * length, config.hidden, vocabulary),
        product(1, batch * length, cells, 2),
        product(1, batch * length, config.hidden, 3),
    ]


def forward(layers: Iterable[Layer]) -> Cost:
    """One forward pass."""
    return sum((Cost(layer.flops, FLOAT * (layer.inputs + layer.outputs + layer.weights)) for layer in layers), Cost())


def backward(layers: Sequence[Layer], *, weights: bool = True, image: bool = False) -> Cost:
    """Gradients of one backward pass: by the weights if asked, and by the network's input if `image`."""
    cost = Cost()
    for i, layer in enumerate(layers):
        moved = Cost(layer.flops, FLOAT * (layer.inputs + layer.outputs + layer.weights))
        cost += moved * ((1 if weights else 0) + (1 if i or image else 0))
    return cost


def optimiser(layers: Iterable[Layer], *, moments: int = 2, average: bool = True) -> Cost:
    """Bytes of an update: parameters and moments read and written, gradients read, and the running average."""
    weights = sum(layer.weights for layer in layers)
    return Cost(0, FLOAT * weights * (2 + 2 * moments + 1 + (2 if average else 0)))


def refiner_update(config: Config) -> Cost:
    """One update of the refiner, through the discriminator."""
    batch = config.refine.batch_size
    own = refiner_layers(batch, config.captcha, config=config.refiner)
    judge = discriminator_layers(batch, config.captcha, config=config.discriminator)
    through = forward(judge) + backward(judge, weights=False, image=True)
    return forward(own) + through + backward(own) + optimiser(own)


def discriminator_update(config: Config) -> Cost:
    """One update of the discriminator on as many freshly refined as real images."""
    batch = config.refine.batch_size
    refine = refiner_layers(batch, config.captcha, config=config.refiner)
    own = discriminator_layers(2 * batch, config.captcha, config=config.discriminator)
    return forward(refine) + forward(own) + backward(own) + optimiser(own, average=False)


def simgan_step(config: Config) -> Cost:
    """One round of Algorithm 1."""
    return refiner_update(config) * config.refine.k_g + discriminator_update(config) * config.refine.k_d


def classify_step(config: Config) -> Cost:
    """One update of the classifier."""
    layers = classifier_layers(config.classify.batch_size, config.captcha, config=config.classifier)
    return forward(layers) + backward(layers) + optimiser(layers)


def synthesis(batch: int, captcha: CaptchaConfig, *, cell: int, codec: bool) -> Cost:
    """Drawn captchas: for each pixel of a glyph's cell `[S, S]` where it comes from (8) and a bilinear sample (8), then
    paint and ink (8 a pixel) and the codec's four products with an 8 x 8 matrix.

    Bytes: the four taps of a sample, one byte each, and the image at rest. Everything between could stay in a cache.
    """
    samples = batch * captcha.length * cell * cell
    pixels = batch * captcha.height * captcha.width
    blocks = batch * -(-captcha.height // 8) * -(-captcha.width // 8)
    return Cost(16 * samples + 8 * pixels + (4 * 2 * 8**3 * blocks if codec else 0), 4 * samples + pixels)
