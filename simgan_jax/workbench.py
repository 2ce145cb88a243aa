"""One seed of a study: what its arms share is made once, by the stages of the main job (io)."""

import collections
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from simgan_jax import (
    adapt,
    alarms,
    alphabet,
    arms,
    atomic,
    classifier,
    classify,
    deciding,
    estimate,
    figures,
    grids,
    measures,
    metrics,
    parts,
    pipeline,
    readers,
    reading,
    refiner,
    rounds,
    session,
    stages,
    studies,
    workdir,
)
from simgan_jax.config import CaptchaConfig, Config, TargetConfig
from simgan_jax.parts import BASE, READER, ROUTE, Part
from simgan_jax.readers import ARM, DECIDED
from simgan_jax.studies import Arm

MEASURED, SHEET, AUGMENTED_COPIES = 1000, 20, 10
# Ink within this share of the image height around a glyph's centre may be the glyph's.
GLYPH_RADIUS = 0.36
# Folded into the seed's key; beside the streams of a run.
MEASURE_STREAM, ORACLE_STREAM = 1001, 1002

ReadTarget = Callable[[CaptchaConfig, TargetConfig], session.Target]


class Answer(NamedTuple):
    """What an arm made of the target. texts: N readings; believed: share it believes right; None if it collapsed.

    seconds: of its own stages; seconds_with: of all that it builds on as well.
    """

    texts: list[str] | None
    believed: float
    seconds: float
    seconds_with: float
    measures: dict[str, float]
    folder: pathlib.Path
    collapsed: str = ""


class Workbench:
    """The parts of one seed in a folder. What is done is loaded, whichever arm or study did it.

    Args:
      path: folder of the seed; devices: those that training is divided over.
      read_target: the unlabelled captchas as a configuration prepares them.
    """

    def __init__(self, path: str | os.PathLike[str], read_target: ReadTarget, *, seed: int, devices: int = 1) -> None:
        self._path = pathlib.Path(path)
        self._read_target = read_target
        self.seed, self._devices = seed, devices
        self._memo: dict[str, tuple[str, Any]] = {}

    def answer(self, arm: Arm, config: Config) -> Answer:
        """Trains an arm that needs no labels, unless that is done, and measures its refiner."""
        config = studies.arm_config(arm, config)
        part = parts.of_arm(arm, config)
        try:
            readings = self._readings(arm, config)
        except alarms.CollapseError as error:
            return self._collapse(arm, part, config, error)
        return self._answer(arm, part, config, readings, self._measure(arm, config) if arm.refines else {})

    def oracle(self, arm: Arm, config: Config, truth: Mapping[str, str], seen: Sequence[str]) -> Answer:
        """Trains on the real labels of the captchas `seen`, by name, and reads the whole target."""
        config = studies.arm_config(arm, config)
        config = dataclasses.replace(config, classify=dataclasses.replace(config.classify, pose_weight=0.0))
        digest = hashlib.sha256(json.dumps([(name, truth[name]) for name in seen]).encode()).hexdigest()[:16]
        steps = studies.route_steps(config)
        recipe = {"augmented": arm.augmented, "seen": len(seen), "truth": digest, "steps": steps}
        groups = ("captcha", "target", *READER) + (("adapt",) if arm.augmented else ())
        part = Part("oracle", groups, recipe)
        try:
            self._check_alive(part, config)
            with self.open(part, config) as run:
                pool = self._real_pool(run, truth, seen, augmented=arm.augmented)
                params = arms.classify_stage(run, ARM, pool, None, total=steps)
                readings = readers.read(run, arm, params)
        except alarms.CollapseError as error:
            return self._collapse(arm, part, config, error)
        return self._answer(arm, part, config, readings, {})

    def picture(self, arm: Arm, config: Config) -> bytes | None:
        """The picture of an arm's refiner or of its fitted simulator, PNG."""
        config = studies.arm_config(arm, config)
        part = parts.refiner(arm.simulator, config) if arm.refines else parts.of_arm(arm, config)
        path = self._folder(part, config) / "picture.png"
        return path.read_bytes() if path.is_file() else None

    def sheet(self, arm: Arm, config: Config) -> tuple[bytes, Any] | None:
        """A sheet of real and refined captchas for a human test, PNG, and its key."""
        if not arm.refines:
            return None
        config = studies.arm_config(arm, config)
        folder = self._folder(parts.refiner(arm.simulator, config), config)
        path = folder / "turing.png"
        return (path.read_bytes(), workdir.read_json(folder / "turing.json")) if path.is_file() else None

    def _readings(self, arm: Arm, config: Config) -> reading.Readings:
        """What an arm read, trained first unless that is done; raises CollapseError also if it collapsed before."""
        part, (stage, name) = parts.of_arm(arm, config), readers.ends(arm, config)
        self._check_alive(part, config)
        if self._facts(part, config, stage) is None:
            self._train(arm, config)
        with self.open(part, config) as run:
            return reading.Readings(**run.workdir.load(name))

    def _train(self, arm: Arm, config: Config) -> None:
        """Trains and reads; what the target shows then stands in the part's folder."""
        if arm.decided:
            readings = self._readings(dataclasses.replace(arm, decided=False, shifted=True), config)
            with self.open(parts.of_arm(arm, config), config) as run:
                deciding.rescore_stage(run, DECIDED, readings, self._glyphs(config))
            return
        if arm.shifted:
            plain = dataclasses.replace(arm, shifted=False)
            self._readings(plain, config)
            if not self._is_trained(parts.of_arm(plain, config), config, *readers.last_training(plain, config)):
                self._train(plain, config)
            with self.open(parts.of_arm(arm, config), config) as run:
                readers.read(run, arm, readers.restore(run, arm))
            return
        pool: classify.Pool | None = None
        if arm.training == "rounds":
            last = self._rounds(config)
            params, belief, pool = last.params, last.readings, last.mixed
        else:
            params, belief = self._classifier(arm.simulator, arm.images, arm.share, config)
        if arm.self_trained:
            pool = pool or self._shown(arm.simulator, arm.images, arm.share, config)
            with self.open(parts.of_arm(arm, config), config) as run:
                if arm.training == "rounds":
                    raw, refined = (self._classifier("wide", images, 1.0, config)[1] for images in ("raw", "refined"))
                    seen = {"synthetic": raw, "refined": refined, "fitted": belief}
                    belief = deciding.decided_belief(run, seen, self._glyphs(config))
                params = rounds.adapt_stage(run, pool, params, belief)
                arms.read_arm(run, ARM, params)

    def _classifier(
        self, simulator: str, shown: str, share: float, config: Config
    ) -> tuple[classifier.Params, reading.Readings]:
        part = parts.classifier(simulator, shown, share, config)
        done = self._is_trained(part, config, f"classify/{ARM}", config.classify.steps)
        pool = None if done else self._shown(simulator, shown, share, config)
        with self.open(part, config) as run:
            # A finished stage is restored and looks at no data.
            data = cast(classify.Pool, pool)
            params = arms.classify_stage(run, ARM, data, None, total=config.classify.steps)
            return params, arms.read_arm(run, ARM, params)

    def _rounds(self, config: Config) -> rounds.Round:
        """The rounds of fitting, to the end; the last one."""
        _, raw = self._classifier("wide", "raw", 1.0, config)
        params, refined = self._classifier("wide", "refined", 1.0, config)
        belief = rounds.mean_readings(raw, refined)
        kept = self._shown("wide", "refined", 1.0, config)
        with self.open(parts.rounds(config), config) as run:
            last = collections.deque(rounds.fit_rounds(run, belief, params, kept), maxlen=1).pop()
            if not run.workdir.done(f"predict/{ARM}"):
                run.workdir.save(f"readings.{ARM}", **last.readings._asdict())
                picture = figures.of_simulator(run, config.fit.rounds - 1, last.simulator, last.drawn)
                atomic.write_bytes(run.workdir.path / "picture.png", picture.png)
                run.workdir.finish(f"predict/{ARM}", 0.0, images=len(last.readings.probabilities))
        return last

    def _glyphs(self, config: Config) -> np.ndarray:
        with self.open(parts.rounds(config), config) as run:
            return deciding.last_glyphs(run)

    def _simulator(self, name: str, config: Config) -> stages.Simulator:
        if name != "fitted":
            return stages.configured_simulator(config)
        if self._facts(parts.rounds(config), config, f"predict/{ARM}") is None:
            self._rounds(config)
        with self.open(parts.rounds(config), config) as run:
            return stages.fitted_simulator(config, **run.workdir.load(f"fit.{config.fit.rounds - 1}"))

    def _pool(self, simulator: str, config: Config) -> classify.Pool:
        """The labelled captchas of a simulator, the same for all arms of the seed."""
        keys, fitted = session.stream_keys(self.seed), simulator == "fitted"
        key = jax.random.fold_in(keys["fitted"], config.fit.rounds) if fitted else keys["pool"]

        def draw() -> classify.Pool:
            drawn_with, count = self._simulator(simulator, config), config.synthesizer.pool
            return stages.draw_pool(key, drawn_with, self.target(config).scene, count=count, config=config)

        part = Part("pool", ROUTE if fitted else BASE, {"simulator": simulator})
        return cast(classify.Pool, self._once("pool", part, config, draw))

    def _refiner(self, simulator: str, config: Config) -> refiner.Params:
        part, pool, reader, settings = parts.refiner(simulator, config), None, None, config.refine
        steps = {
            "pretrain/refiner": settings.refiner_pretrain_steps,
            "pretrain/discriminator": settings.discriminator_pretrain_steps,
            "refine": settings.steps,
        }
        if not all(self._is_trained(part, config, stage, count) for stage, count in steps.items()):
            pool = self._pool(simulator, config)
            reader = self._classifier(simulator, "raw", 1.0, config)[0] if settings.lambda_label else None
        with self.open(part, config) as run:
            return pipeline.refine_stages(run, cast(classify.Pool, pool), reader)

    def _refined(self, simulator: str, config: Config) -> classify.Pool:
        def refine() -> classify.Pool:
            key, params = session.stream_keys(self.seed)["latents"], self._refiner(simulator, config)
            return stages.refine_pool(key, params, self._pool(simulator, config), config=config)

        return cast(classify.Pool, self._once("refined", parts.refiner(simulator, config), config, refine))

    def _shown(self, simulator: str, shown: str, share: float, config: Config) -> classify.Pool:
        """The captchas that a classifier is shown."""
        pools = [self._pool(simulator, config)] if shown != "refined" else []
        pools += [self._refined(simulator, config)] if shown != "raw" else []
        if share < 1:
            pools = [stages.take(pool, max(1, round(share * len(pool.ink)))) for pool in pools]
        return stages.mix_pools(*pools)

    def _real_pool(
        self, run: session.Run, truth: Mapping[str, str], seen: Sequence[str], *, augmented: bool
    ) -> classify.Pool:
        index = {name: i for i, name in enumerate(run.target.names)}
        labels = alphabet.encode([truth[name] for name in seen], run.config.captcha.alphabet)
        ink = run.target.ink[[index[name] for name in seen]]
        if augmented:
            key = jax.random.fold_in(jax.random.key(self.seed), ORACLE_STREAM)
            ink = adapt.augmented_copies(key, ink, AUGMENTED_COPIES, config=run.config.adapt)
            labels = np.tile(labels, (AUGMENTED_COPIES, 1))
        return classify.Pool(jnp.asarray(ink), jnp.asarray(labels), jnp.zeros((*labels.shape, 3)))

    def _measure(self, arm: Arm, config: Config) -> dict[str, float]:
        """What the arm's refiner does to captchas that neither it nor the independent reader has seen."""
        part = parts.refiner(arm.simulator, config)
        if (known := self._facts(part, config, stage := parts.measure(arm.simulator, config))) is not None:
            return {name: value for name, value in known.items() if name not in ("stage", "seconds")}
        begin = time.monotonic()
        params = self._refiner(arm.simulator, config)
        reader_params, _ = self._classifier(arm.simulator, "raw", 1.0, config)
        before = self._unseen(arm.simulator, config)
        after = stages.refine_pool(self._key(4), params, before, config=config)
        simulated, refined = np.asarray(before.ink), np.asarray(after.ink)
        read = reading.Reader(config.captcha, config=config.classifier)
        kept = measures.preservation(
            simulated,
            refined,
            np.asarray(before.poses),
            np.asarray(before.labels),
            *(read(reader_params, ink).probabilities.argmax(axis=-1) for ink in (simulated, refined)),
            radius=GLYPH_RADIUS * config.captcha.height,
        )
        real = self._real(config)
        auc = self._critic(arm.simulator, config, real, simulated)
        rows = {**kept._asdict(), "auc_simulated": auc, "auc_refined": self._auc(real, refined, config)}
        with self.open(part, config) as run:
            picture = grids.refinement(simulated[: figures.SHOWN], refined[: figures.SHOWN], real[: figures.SHOWN])
            atomic.write_bytes(run.workdir.path / "picture.png", grids.png(picture))
            self._write_sheet(run.workdir.path, real, refined)
            run.workdir.finish(stage, time.monotonic() - begin, **rows)
        return rows

    def _critic(self, simulator: str, config: Config, real: np.ndarray, simulated: np.ndarray) -> float:
        """AUC of real against simulated captchas, once for each simulator."""
        groups = ROUTE if simulator == "fitted" else BASE
        part = Part("critic", groups, {"simulator": simulator, "steps": _critic_steps(config)})
        with self.open(part, config) as run:
            if not run.workdir.done("critic"):
                begin = time.monotonic()
                auc = self._auc(real, simulated, config)
                run.workdir.finish("critic", time.monotonic() - begin, auc=auc)
            return float(run.workdir.facts("critic")["auc"])

    def _auc(self, real: np.ndarray, others: np.ndarray, config: Config) -> float:
        return measures.turing_auc(self._key(1), real, others, steps=_critic_steps(config))

    def _write_sheet(self, folder: pathlib.Path, real: np.ndarray, refined: np.ndarray) -> None:
        # The last ones, not those of the picture.
        tiles, answers = measures.turing_sheet(self._key(2), real[-SHEET:], refined[-SHEET:])
        atomic.write_bytes(folder / "turing.png", grids.png(grids.sheet(tiles, captions=list(answers), across=8)))
        workdir.write_json(folder / "turing.json", answers)

    def _unseen(self, simulator: str, config: Config) -> classify.Pool:
        drawn_with, count = self._simulator(simulator, config), min(MEASURED, config.synthesizer.pool)
        return stages.draw_pool(self._key(0), drawn_with, self.target(config).scene, count=count, config=config)

    def _real(self, config: Config) -> np.ndarray:
        ink = self.target(config).ink
        order = np.asarray(jax.random.permutation(self._key(3), len(ink)))
        return ink[order[:MEASURED]]

    def _key(self, use: int) -> jax.Array:
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(self.seed), MEASURE_STREAM), use)

    def target(self, config: Config) -> session.Target:
        """The unlabelled captchas as a configuration prepares them."""
        return self._read_target(config.captcha, config.target)

    def _folder(self, part: Part, config: Config) -> pathlib.Path:
        return self._path / parts.folder(part, config=config)

    @contextlib.contextmanager
    def open(self, part: Part, config: Config) -> Iterator[session.Run]:
        """The run in which a part is made, its folder held while it is open."""
        folder = self._folder(part, config)
        identity = {"part": part.kind, "seed": self.seed} | parts.depends(part, config=config)
        with workdir.Workdir(folder, identity) as place, metrics.MetricsWriter(folder) as writer:
            yield session.Run(config, place, writer, session.stream_keys(self.seed), self.target(config), self._devices)

    def _once(self, slot: str, part: Part, config: Config, make: Callable[[], Any]) -> Any:
        """The value last made for a slot if it was for the same part; one stays in memory, as pools are large."""
        name = self._folder(part, config).name
        if self._memo.get(slot, ("",))[0] != name:
            self._memo.pop(slot, None)
            self._memo[slot] = (name, make())
        return self._memo[slot][1]

    def _stages(self, part: Part, config: Config) -> list[dict[str, Any]]:
        path = self._folder(part, config) / workdir.STAGES_FILE
        return workdir.read_json(path) if path.is_file() else []

    def _facts(self, part: Part, config: Config, stage: str) -> dict[str, Any] | None:
        """What is known of a stage of a part, None if it is not done."""
        return next((row for row in self._stages(part, config) if row["stage"] == stage), None)

    def _is_trained(self, part: Part, config: Config, stage: str, steps: int) -> bool:
        """Whether a stage is done and its last checkpoint there: one that is broken may have been removed."""
        last = session.checkpoint_folder(self._folder(part, config), stage) / str(steps)
        return self._facts(part, config, stage) is not None and last.is_dir()

    def _check_alive(self, part: Part, config: Config) -> None:
        if (found := self._facts(part, config, "collapsed")) is not None:
            raise alarms.CollapseError(found["message"])

    def _collapse(self, arm: Arm, part: Part, config: Config, error: alarms.CollapseError) -> Answer:
        """The answer of an arm that broke down, which is kept: it would again."""
        with self.open(part, config) as run:
            if not run.workdir.done("collapsed"):
                run.workdir.finish("collapsed", 0.0, message=str(error))
        return self._answer(arm, part, config, None, {}, str(error))

    def _answer(
        self,
        arm: Arm,
        part: Part,
        config: Config,
        readings: reading.Readings | None,
        measured: dict[str, float],
        collapsed: str = "",
    ) -> Answer:
        texts, believed = None, float("nan")
        if readings is not None:
            texts, _ = reading.answers(readings.probabilities, config.captcha)
            believed = estimate.accuracy(readings.probabilities).estimate
        # Shifts are in the folder of what was read: the arm's own, or that of the part before which was then decided.
        read = part.needs[0] if arm.decided else part if arm.shifted else None
        seconds = {
            self._folder(piece, config): self._seconds(piece, config, shifted=piece == read)
            for piece in parts.closure(part)
        }
        folder = self._folder(part, config)
        return Answer(texts, believed, seconds[folder], sum(seconds.values()), measured, folder, collapsed)

    def _seconds(self, part: Part, config: Config, *, shifted: bool) -> float:
        left_out = ("measure/",) if shifted else ("measure/", "predict/shifted")
        return float(sum(row["seconds"] for row in self._stages(part, config) if not row["stage"].startswith(left_out)))


def _critic_steps(config: Config) -> int:
    """No more than the refiner's own discriminator has."""
    return min(measures.CRITIC_STEPS, max(1, config.refine.steps))
