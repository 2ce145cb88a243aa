"""The networks and steps of simgan_jax in PyTorch, to be timed beside them: same weights, batch and mathematics.

Tensors lie channels_last. On a GPU the networks are compiled and run in bfloat16 under autocast, their weights in
float32.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from simgan_jax.classifier import group_size
from simgan_jax.config import CaptchaConfig, ClassifierConfig, Config, DiscriminatorConfig, RefinerConfig

Weights = Mapping[str, Any]


class Conv(nn.Conv2d):
    """A convolution with XLA's "SAME" padding, which a stride makes uneven."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, same: bool = True, bias: bool = True
    ):
        self.uneven = same and stride > 1
        padding = kernel // 2 if same and not self.uneven else 0
        super().__init__(inputs, outputs, kernel, stride, padding, bias=bias)

    def forward(self, x: torch.Tensor, scale: torch.Tensor | float = 1.0) -> torch.Tensor:
        """The convolution with its kernel over `scale`."""
        if self.uneven:
            pads = []
            for size in (x.shape[3], x.shape[2]):
                total = max(0, (-(-size // self.stride[0]) - 1) * self.stride[0] + self.kernel_size[0] - size)
                pads += [total // 2, total - total // 2]
            x = functional.pad(x, pads)
        return self._conv_forward(x, self.weight / scale, self.bias)


class _Bounded(torch.autograd.Function):
    """Values clipped to [-1, 1]; gradients pass outside where a descent leads back inside."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x.clamp(-1.0, 1.0)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        (x,), (g,) = ctx.saved_tensors, gradients
        return torch.where(((x <= -1.0) & (g > 0.0)) | ((x >= 1.0) & (g < 0.0)), 0.0, g)


class Refiner(nn.Module):
    """`simgan_jax.refiner` on `[B, 1, H, W]`."""

    def __init__(self, config: RefinerConfig):
        super().__init__()
        width = config.width
        inner = [Conv(1 if i == 0 else width, width, config.kernel) for i in range(1 + 2 * config.blocks)]
        self.convs = nn.ModuleList([*inner, Conv(width, 1, 1)])
        self.residual = config.residual

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.convs[0](images))
        for first, second in zip(self.convs[1:-1:2], self.convs[2:-1:2], strict=True):
            x = functional.relu(x + second(functional.relu(first(x))))
        x = self.convs[-1](x)
        return _Bounded.apply(images + x) if self.residual else torch.tanh(x)


class Discriminator(nn.Module):
    """`simgan_jax.discriminator` on `[B, 1, H, W]`: logits `[B, 2, h, w]`."""

    def __init__(self, config: DiscriminatorConfig):
        super().__init__()
        a, b, c, d = config.widths
        layers = [Conv(1, a, 3, stride=2), Conv(a, b, 3, stride=2), Conv(b, c, 3), Conv(c, d, 1), Conv(d, 2, 1)]
        self.convs = nn.ModuleList(layers)
        self.config = config
        for i, layer in enumerate(layers):
            self.register_buffer(f"right{i}", torch.zeros(layer.out_channels))

    def _singular(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Left and right singular vectors of a kernel, after half a power iteration each."""
        with torch.no_grad():
            matrix = self.convs[i].get_parameter("weight").flatten(1)
            left = functional.normalize(self.get_buffer(f"right{i}") @ matrix, dim=0)
            return left, functional.normalize(matrix @ left, dim=0)

    def _layer(self, i: int, x: torch.Tensor) -> torch.Tensor:
        conv: Any = self.convs[i]
        if not self.config.spectral_norm:
            return conv(x)
        left, right = self._singular(i)
        return conv(x, right @ conv.weight.flatten(1) @ left)

    def advance(self) -> None:
        """One power iteration of each layer."""
        if self.config.spectral_norm:
            for i in range(len(self.convs)):
                self.get_buffer(f"right{i}").copy_(self._singular(i)[1])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        leak = self.config.leak
        x = functional.leaky_relu(self._layer(0, images), leak)
        x = functional.leaky_relu(self._layer(1, x), leak)
        x = functional.max_pool2d(x, 3, 1, 1)
        x = functional.leaky_relu(self._layer(2, x), leak)
        x = functional.leaky_relu(self._layer(3, x), leak)
        if self.config.adversary == "global":
            x = x.mean(dim=(2, 3), keepdim=True)
        return self._layer(4, x)


class SlotClassifier(nn.Module):
    """`simgan_jax.classifier` of the kind "slots" on `[B, 1, H, W]`: logits `[B, L, V]`, poses `[B, L, 3]`."""

    def __init__(self, captcha: CaptchaConfig, config: ClassifierConfig):
        super().__init__()
        widths, hidden = config.widths, config.hidden
        trunk = [Conv(i, o, 3, bias=False) for i, o in zip((4, *widths), widths, strict=False)]
        self.convs = nn.ModuleList([*trunk, Conv(widths[-1], captcha.length, 1)])
        self.norms = nn.ModuleList([nn.GroupNorm(width // group_size(width), width, eps=1e-6) for width in widths])
        rows, columns = math.ceil(captcha.height / 4), math.ceil(captcha.width / 4)
        self.position = nn.Parameter(torch.zeros(rows, columns, captcha.length))
        self.dense = nn.ModuleList(
            [nn.Linear(widths[-1], hidden), nn.Linear(hidden, len(captcha.alphabet)), nn.Linear(hidden, 3)]
        )
        self.dropout = config.dropout

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        B, _, H, W = images.shape
        x = functional.pad(images, (0, W % 2, 0, H % 2), value=-1.0)
        x = functional.pixel_unshuffle(x, 2).contiguous(memory_format=torch.channels_last)
        for i, norm in enumerate(self.norms):
            y = functional.relu(norm(self.convs[i](x)))
            x = x + y if x.shape == y.shape else y
            if i == 0:
                x = functional.max_pool2d(x, 2, ceil_mode=True)
        rows, columns = x.shape[2:]
        scores = self.convs[-1](x).permute(0, 2, 3, 1) + self.position
        attention = scores.reshape(B, rows * columns, -1).softmax(dim=1)
        slots = torch.einsum("bpl,bpc->blc", attention, x.permute(0, 2, 3, 1).reshape(B, rows * columns, -1))
        slots = functional.dropout(slots, self.dropout, self.training)
        hidden = functional.relu(self.dense[0](slots))
        scale = torch.tensor([H / rows, W / columns], device=x.device)
        grid = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        cells = (torch.stack(grid, -1).to(x.device) + 0.5) * scale
        seen = torch.einsum("bpl,pd->bld", attention, cells.reshape(-1, 2).to(attention.dtype))
        turned = self.dense[2](hidden)
        poses = torch.cat([seen + turned[..., :2] * scale, turned[..., 2:]], -1)
        return self.dense[1](hidden), poses


def load(network: nn.Module, weights: Weights, spectral: Weights | None = None) -> None:
    """Copies Flax parameters (NumPy leaves) into a network."""
    names = {"Conv": "convs", "GroupNorm": "norms", "Dense": "dense"}
    with torch.no_grad():
        for name, leaves in weights.items():
            if name == "position":
                network.get_parameter(name).copy_(torch.from_numpy(np.array(leaves)))
                continue
            kind, _, number = name.partition("_")
            layer = network.get_submodule(f"{names[kind]}.{number}")
            for leaf, values in leaves.items():
                array = np.array(values)
                if leaf == "kernel":
                    array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
                layer.get_parameter("bias" if leaf == "bias" else "weight").copy_(torch.from_numpy(array.copy()))
        for name, vector in (spectral or {}).items():
            network.get_buffer(f"right{name.partition('_')[2]}").copy_(torch.from_numpy(np.array(vector)))


def device() -> torch.device:
    """The GPU if PyTorch sees one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def wait() -> None:
    """Waits until the device has done all that it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@contextlib.contextmanager
def _precision() -> Iterator[None]:
    if device().type == "cuda":
        with torch.autocast("cuda", torch.bfloat16):
            yield
    else:
        yield


def _placed(network: Any) -> Any:
    network = network.to(device(), memory_format=torch.channels_last)
    if device().type == "cuda":
        network.compile()
    return network


def _rule(parameters: Iterator[nn.Parameter], config: Config, lr: float) -> torch.optim.Optimizer:
    if config.refine.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr)
    if config.refine.optimizer == "adam":
        return torch.optim.Adam(parameters, lr, betas=(0.5, 0.9), fused=True)
    raise ValueError(f"optimizer {config.refine.optimizer!r}: the peer has adam and sgd")


def _average(average: nn.Module, network: nn.Module, decay: float) -> None:
    with torch.no_grad():
        for a, p in zip(average.parameters(), network.parameters(), strict=True):
            a.lerp_(p, 1.0 - decay)


class SimGAN:
    """Algorithm 1 as in `simgan_jax.steps`. ink, real: uint8 `[N, H, W]` and `[M, H, W]`."""

    def __init__(self, config: Config, refiner: Weights, discriminator: Weights, spectral: Weights, data: Any):
        self.config = config
        self.refiner, self.average = Refiner(config.refiner), Refiner(config.refiner)
        self.discriminator = Discriminator(config.discriminator)
        load(self.refiner, refiner)
        load(self.average, refiner)
        load(self.discriminator, discriminator, spectral)
        self.refiner, self.average = _placed(self.refiner), self.average.to(device())
        self.discriminator = _placed(self.discriminator)
        self.refiner_rule = _rule(self.refiner.parameters(), config, config.refine.refiner_lr)
        self.discriminator_rule = _rule(self.discriminator.parameters(), config, config.refine.discriminator_lr)
        self.ink, self.real = (torch.from_numpy(np.array(x)).to(device()) for x in data)
        size = (config.refine.history_size, config.captcha.height, config.captcha.width)
        self.history = torch.zeros(size, dtype=torch.uint8, device=device())
        self.filled = self.steps = 0

    def _draw(self, stack: torch.Tensor, count: int) -> torch.Tensor:
        index = torch.randint(len(stack), (count,), device=device())
        return (stack[index].float() / 127.5 - 1.0)[:, None].contiguous(memory_format=torch.channels_last)

    def _noisy(self, images: torch.Tensor) -> torch.Tensor:
        return images + self.config.discriminator.noise * torch.randn_like(images)

    def refiner_step(self) -> dict[str, torch.Tensor]:
        """One update of the refiner."""
        config = self.config.refine
        synthetic = self._draw(self.ink, config.batch_size)
        self.discriminator.requires_grad_(False)
        with _precision():
            refined = self.refiner(synthetic)
            logits = self.discriminator(self._noisy(refined))
        adversarial = -logits.float().log_softmax(1)[:, 0].sum(dim=(1, 2)).mean()
        distance = (refined.float() - synthetic).abs()
        loss = adversarial + config.lambda_reg * distance.sum(dim=(1, 2, 3)).mean()
        self.discriminator.requires_grad_(True)
        self.refiner_rule.zero_grad()
        loss.backward()
        self.refiner_rule.step()
        return {"refiner_adversarial": adversarial / logits[0, 0].numel(), "refiner_reg": distance.mean()}

    def discriminator_step(self) -> dict[str, torch.Tensor]:
        """One update of the discriminator, half of its refined images from the history."""
        config, half = self.config.refine, self.config.refine.batch_size // 2
        with torch.no_grad(), _precision():
            refined = self.refiner(self._draw(self.ink, config.batch_size)).float()
        old = self._draw(self.history[: self.filled], half) if self.filled else refined[:half]
        seen = self._noisy(torch.cat([old, refined[half:], self._draw(self.real, config.batch_size)]))
        with _precision():
            logits = self.discriminator(seen)
        log_p = logits.float().log_softmax(1)
        count = config.batch_size
        loss = -(log_p[:count, 1].sum(dim=(1, 2)) + log_p[count:, 0].sum(dim=(1, 2))).mean()
        self.discriminator_rule.zero_grad()
        loss.backward()
        self.discriminator_rule.step()
        self.discriminator.advance()
        self._remember(refined[:half, 0])
        return {"discriminator_loss": loss / (2 * logits[0, 0].numel())}

    def _remember(self, images: torch.Tensor) -> None:
        if not len(self.history):
            return
        free = min(len(self.history) - self.filled, len(images))
        random = torch.randperm(max(self.filled, 1), device=device())[: len(images) - free]
        slots = torch.cat([torch.arange(self.filled, self.filled + free, device=device()), random])
        self.history[slots] = ((images + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)
        self.filled += free

    def simgan_step(self) -> dict[str, torch.Tensor]:
        """One round of Algorithm 1."""
        config = self.config.refine
        metrics = [self.refiner_step() for _ in range(config.k_g)] + [
            self.discriminator_step() for _ in range(config.k_d)
        ]
        decay = min(config.average_decay, (1.0 + self.steps) / (10.0 + self.steps))
        _average(self.average, self.refiner, decay)
        self.steps += 1
        return metrics[0] | metrics[-1]


class Classifier:
    """Training of the reader as in `simgan_jax.classify`. data: ink uint8 `[N, H, W]`, labels, poses."""

    def __init__(self, config: Config, weights: Weights, data: Any):
        self.config, self.steps = config, 0
        self.network = SlotClassifier(config.captcha, config.classifier)
        self.average = SlotClassifier(config.captcha, config.classifier)
        load(self.network, weights)
        load(self.average, weights)
        self.network, self.average = _placed(self.network), self.average.to(device())
        own = config.classify
        self.rule = torch.optim.AdamW(self.network.parameters(), own.lr, weight_decay=own.weight_decay, fused=True)
        self.ink, self.labels, self.poses = (torch.from_numpy(np.array(x)).to(device()) for x in data)
        height = config.captcha.height
        self.unit = torch.tensor([height / 5, height / 5, 0.3], device=device())

    def step(self) -> dict[str, torch.Tensor]:
        """One update."""
        config = self.config.classify
        index = torch.randint(len(self.ink), (config.batch_size,), device=device())
        images = (self.ink[index].float() / 127.5 - 1.0)[:, None].contiguous(memory_format=torch.channels_last)
        with _precision():
            logits, poses = self.network(images)
        labels = self.labels[index].long()
        cross_entropy = functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), reduction="sum")
        cross_entropy = cross_entropy / len(images)
        pose_error = ((poses.float() - self.poses[index]) / self.unit).abs().sum(dim=(1, 2)).mean()
        self.rule.zero_grad()
        (cross_entropy + config.pose_weight * pose_error).backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        for group in self.rule.param_groups:
            group["lr"] = self._rate()
        self.rule.step()
        _average(self.average, self.network, min(config.average_decay, (1.0 + self.steps) / (10.0 + self.steps)))
        self.steps += 1
        return {"cross_entropy": cross_entropy, "pose_error": pose_error}

    def _rate(self) -> float:
        config = self.config.classify
        warmup = max(1, min(config.warmup, config.steps // 4))
        if self.steps < warmup:
            return config.lr * self.steps / warmup
        share = min(1.0, (self.steps - warmup) / max(1, config.steps - warmup))
        return config.lr * (0.02 + 0.98 * 0.5 * (1.0 + math.cos(math.pi * share)))
