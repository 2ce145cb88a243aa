"""From a pure step to a trained state: one jit with donation, and the loop around it."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from simgan_jax import backend

State = Any
Metrics = dict[str, jax.Array]
Step = Callable[[State, jax.Array, Any], tuple[State, Metrics]]
Hook = Callable[[int, State, dict[str, float]], None]


def make_chunk(step_fn: Step) -> Callable[..., tuple[State, Metrics]]:
    """`chunk(state, key, data, length=K) -> (state, metrics)`: K steps; the state is donated, metrics are their means.

    `step_fn(state, key, data)` gets `fold_in(key, state.step)`, so a chunk goes on where any other stopped, bitwise
    so on a CPU. There a chunk is a loop over one compiled step, elsewhere one compiled scan (see backend.py).
    """

    def step(state: State, key: jax.Array, data: Any) -> tuple[State, Metrics]:
        return step_fn(state, jax.random.fold_in(key, state.step), data)

    if backend.has_slow_convolution_gradients():
        compiled = jax.jit(step, donate_argnums=0)

        def loop(state: State, key: jax.Array, data: Any, *, length: int) -> tuple[State, Metrics]:
            rows = []
            for _ in range(length):
                state, metrics = compiled(state, key, data)
                rows.append(metrics)
            return state, jax.tree.map(lambda *x: jnp.mean(jnp.stack(x)), *rows)

        return loop

    def scan(state: State, key: jax.Array, data: Any, *, length: int) -> tuple[State, Metrics]:
        state, metrics = jax.lax.scan(lambda s, _: step(s, key, data), state, None, length=length)
        return state, jax.tree.map(lambda x: x.mean(axis=0), metrics)

    return jax.jit(scan, donate_argnums=0, static_argnames="length")


def fit(
    state: State,
    key: jax.Array,
    step_fn: Step,
    data: Any,
    *,
    steps: int,
    chunk: int,
    hooks: Sequence[Hook] = (),
) -> State:
    """Trains from `state.step` to `steps`, calling `hook(step, state, metrics)` after each chunk.

    The given state is donated. Chunks end at multiples of `chunk`, and the last one at `steps`.
    """
    done = int(state.step)
    run_chunk = make_chunk(step_fn)
    while done < steps:
        length = min(chunk - done % chunk, steps - done)
        state, metrics = run_chunk(state, key, data, length=length)
        done += length
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        for hook in hooks:
            hook(done, state, values)
    return state
