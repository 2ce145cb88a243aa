"""Strict JAX settings for every test and every script that a test starts, and the shared fixtures."""

import atexit
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

# Before JAX is imported, and in the environment, so that child processes are held to the same rules.
# JAX_PLATFORMS=cuda in the caller's environment runs the suite on a GPU.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.update(
    JAX_NUMPY_RANK_PROMOTION="raise",
    JAX_DEBUG_KEY_REUSE="1",
    JAX_NUM_CPU_DEVICES="2",
    JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
    XLA_PYTHON_CLIENT_PREALLOCATE="false",
)
# XLA takes longer to optimise programs as small as these than they take to run.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# Scripts compile what other scripts and tests compiled before them: a smoke run takes a third as long with the
# cache of another. It lives as long as the session, so no test sees what an earlier session left.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="simgan_jax-tests-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

import jax
import pytest

ROOT = Path(__file__).resolve().parent.parent
# Their subject is what XLA makes of sums and roundings: they test the programs that users run, with the compiler that
# users have; `make test` runs them apart, and hastens the others by what NO_EMITTERS switches off.
OPTIMISED = ("images_test", "layout_test", "stages_test", "synthesizer_test", "target_test", "train_test")
NO_EMITTERS = "xla_cpu_use_fusion_emitters=false"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests of the modules named in `OPTIMISED`."""
    for item in items:
        if item.path.stem in OPTIMISED:
            item.add_marker("optimised")


@pytest.fixture(autouse=True, scope="module")
def optimisation(request: pytest.FixtureRequest) -> Iterator[None]:
    """The modules named in `OPTIMISED` have XLA's optimisations, the others and all scripts do without."""
    usual = jax.config.read("jax_disable_most_optimizations")
    if request.module.__name__.rpartition(".")[2] in OPTIMISED:
        assert NO_EMITTERS not in os.environ.get("XLA_FLAGS", ""), "XLA compiles otherwise with these XLA_FLAGS"
        jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", usual)


@pytest.fixture
def key() -> jax.Array:
    """A typed key, the same in every test."""
    return jax.random.key(0)


@pytest.fixture(scope="session")
def run_script() -> Callable[..., subprocess.CompletedProcess[str]]:
    """`run_script("experiments.evaluate", "--labels=...")` runs a module as a user would, from the repository root.

    Warnings are errors there too. Returns the finished process with its text output; the exit code is the caller's to
    check. Fails after `timeout` seconds, so that a script that waits for something does not hang the suite.
    """

    def run(module: str, *args: str | Path, timeout: float = 600.0) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-W", "error", "-m", module, *map(str, args)]
        return subprocess.run(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout
        )

    return run


class SmallRun(NamedTuple):
    """A complete run of every stage. flags: all but --workdir; challenges: its captchas; done: its process."""

    workdir: Path
    flags: tuple[str, ...]
    challenges: Path
    done: subprocess.CompletedProcess[str]


# Of the preset `smoke`. Tests that train as a user would share it, and so what is compiled for it.
SMALL = {
    "captcha.height": 24,
    "captcha.width": 48,
    "captcha.length": 2,
    "captcha.alphabet": "abc3",
    "synthesizer.fonts": ("lato-bold",),
    "synthesizer.pool": 64,
    "fit.pool": 64,
    "classifier.widths": (8,),
    "refine.lambda_label": 0.5,
}
SMALL_CONFIG_FLAGS = ("--preset=smoke", *(f"--config.{field}={value}" for field, value in SMALL.items()))
SMALL_IMAGES = 60
SMALL_FLAGS = (*SMALL_CONFIG_FLAGS, "--target=embedded", f"--embedded_images={SMALL_IMAGES}")


@pytest.fixture(scope="session")
def small_run(
    tmp_path_factory: pytest.TempPathFactory, run_script: Callable[..., subprocess.CompletedProcess[str]]
) -> SmallRun:
    """The main job on a little embedded contest, once for all tests; what it compiles, later processes load.

    The first process of pytest-xdist that asks for it makes it, the others wait: their folders have one parent.
    """
    shared = tmp_path_factory.getbasetemp()
    folder = (shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared) / "runs"
    folder.mkdir(exist_ok=True)
    workdir, ended = folder / "small", folder / "ended.json"
    with open(folder / "lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not ended.exists():
            done = run_script("experiments.run", f"--workdir={workdir}", *SMALL_FLAGS, timeout=1800.0)
            ended.write_text(json.dumps([done.args, done.returncode, done.stdout, done.stderr]), encoding="utf-8")
    done = subprocess.CompletedProcess(*json.loads(ended.read_text(encoding="utf-8")))
    (challenges,) = (folder / "small.challenges").iterdir()
    return SmallRun(workdir, SMALL_FLAGS, challenges, done)
