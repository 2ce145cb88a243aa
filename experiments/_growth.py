"""What loading, synthesis, history and prediction cost as images grow in number; each size in a process of its own."""

import concurrent.futures
import multiprocessing
import pathlib
import resource
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from experiments import _suites
from simgan_jax import challenge, classifier, contest, history, predictor, reading, session, stages, target
from simgan_jax.config import Config

FILE = 1000
HISTORY_ROUNDS = 10


def write_target(folder: pathlib.Path, count: int, *, drawn: int = FILE) -> None:
    """Contest files of `count` captchas, of which `drawn` are different; all have names of their own."""
    jpegs = [contest.draw("growth", i).jpeg for i in range(min(drawn, count))]
    for start in range(0, count, FILE):
        records = ((f"{i:08d}", jpegs[i % len(jpegs)]) for i in range(start, min(start + FILE, count)))
        (folder / f"challenge-{start // FILE}").write_bytes(challenge.encode_batch(records))


def load(count: int, folder: pathlib.Path, config: Config) -> float:
    """Reads a whole target, estimates its scene and extracts its ink; seconds."""
    start = time.perf_counter()
    captcha = config.captcha
    records = challenge.read(folder, height=captcha.height, width=captcha.width)
    scene = target.estimate_scene(records.gray, table=records.tables, config=config.target)
    ink = target.prepare(records.gray, scene, config=config.target)
    assert len(ink) == count
    return time.perf_counter() - start


def synthesis(count: int, folder: pathlib.Path, config: Config) -> float:
    """Draws a pool; seconds."""
    simulator = stages.configured_simulator(config)
    start = time.perf_counter()
    scene = _suites.example_scene(config)
    jax.block_until_ready(stages.draw_pool(jax.random.key(0), simulator, scene, count=count, config=config))
    return time.perf_counter() - start


def remember(count: int, folder: pathlib.Path, config: Config) -> float:
    """Rounds of mixing with, and adding to, a history with `count` slots; seconds of all rounds, compiled before."""
    shape = (config.captcha.height, config.captcha.width, 1)
    batch = min(config.refine.batch_size, count)

    def step(state: history.HistoryState, key: jax.Array) -> tuple[history.HistoryState, jax.Array]:
        fresh = jnp.zeros((batch, *shape))
        mix_key, add_key = jax.random.split(key)
        mixed = history.mix(state, mix_key, fresh)
        return history.add(state, add_key, fresh + 0.0 * mixed), mixed.mean()

    compiled = jax.jit(step, donate_argnums=0)
    state, keys = history.init(count, shape), jax.random.split(jax.random.key(0), HISTORY_ROUNDS + 1)
    state, _ = jax.block_until_ready(compiled(state, keys[0]))
    start = time.perf_counter()
    for key in keys[1:]:
        state, _ = compiled(state, key)
    jax.block_until_ready(state)
    return time.perf_counter() - start


def predict(count: int, folder: pathlib.Path, config: Config) -> float:
    """Reads captchas from files, as `experiments.predict` does; seconds, compilation included."""
    params = classifier.init(jax.random.key(0), config.captcha, config=config.classifier)
    scene = session.scene_from(session.scene_arrays(_suites.example_scene(config)))
    reader = reading.Reader(config.captcha, config=config.classifier)
    start = time.perf_counter()
    trained = predictor.Predictor(config, scene, params, reader)
    seen = sum(len(names) for names, _, _ in predictor.predict(trained, [folder]))
    assert seen == count
    return time.perf_counter() - start


PARTS: Mapping[str, Callable[[int, pathlib.Path, Config], float]] = {
    "load": load,
    "synthesis": synthesis,
    "history": remember,
    "predict": predict,
}


def part(name: str, count: int, folder: pathlib.Path, config: Config) -> dict[str, Any]:
    """One row: time and memory of one part in this process."""
    before = peak_bytes()
    seconds = PARTS[name](count, folder, config)
    peak = peak_bytes()
    # A round of the history handles a batch, whatever its capacity.
    items = HISTORY_ROUNDS * config.refine.batch_size if name == "history" else count
    return {
        "part": name,
        "images": count,
        "seconds": seconds,
        "images_per_second": items / seconds,
        "peak_bytes": peak,
        "grown_bytes": peak - before,
    }


def peak_bytes() -> int:
    """The most memory that this process has held."""
    try:
        lines = pathlib.Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(sizes: Sequence[int], config: Config, *, parts: Sequence[str] = tuple(PARTS)) -> list[dict[str, Any]]:
    """Rows of all parts at all sizes."""
    rows = []
    for name in parts:
        for count in sizes:
            with tempfile.TemporaryDirectory() as folder:
                if name in ("load", "predict"):
                    write_target(pathlib.Path(folder), count)
                rows.append(_alone(name, count, pathlib.Path(folder), config))
    return rows


def _alone(name: str, count: int, folder: pathlib.Path, config: Config) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
        return pool.submit(part, name, count, folder, config).result()
