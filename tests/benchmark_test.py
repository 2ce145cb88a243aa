import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import _growth, _peers_pillow, _suites
from simgan_jax import (
    benchmark,
    benchmark_tables,
    classifier,
    classify,
    counts,
    discriminator,
    refiner,
    stages,
    workdir,
)
from simgan_jax.config import (
    CaptchaConfig,
    ClassifierConfig,
    ClassifyConfig,
    Config,
    ConfigError,
    DiscriminatorConfig,
    RefineConfig,
    RefinerConfig,
)
from simgan_jax.counts import Cost, Layer
from tests.conftest import ROOT

CAPTCHA = CaptchaConfig()


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding", "expected"),
    [
        # Each end lacks one tap; under a stride an even side is padded at its end, an odd one at both.
        (5, 3, 1, "SAME", (5, 13)),
        (50, 3, 2, "SAME", (25, 74)),
        (25, 3, 2, "SAME", (13, 37)),
        (7, 1, 1, "SAME", (7, 7)),
        (50, 3, 1, "VALID", (48, 144)),
    ],
)
def test_taps_inside_an_image(size, kernel, stride, padding, expected):
    assert counts.taps(size, kernel, stride, padding) == expected


def test_convolution_and_product_by_hand():
    layer, shape = counts.convolution((2, 5, 5, 3), 4)
    assert layer == Layer(flops=2 * 2 * 13 * 13 * 3 * 4, inputs=150, outputs=200, weights=108)
    assert shape == (2, 5, 5, 4)
    assert counts.product(2, 3, 4, 5) == Layer(flops=240, inputs=24, outputs=30, weights=40)


LAYERS = [Layer(10, 1, 2, 3), Layer(20, 2, 4, 5)]


def test_passes_by_hand():
    # 6 and 11 elements of 4 bytes in the two layers.
    assert counts.forward(LAYERS) == Cost(30, 68)
    assert counts.backward(LAYERS) == Cost(10 + 2 * 20, 4 * (6 + 2 * 11))
    assert counts.backward(LAYERS, image=True) == Cost(60, 136)
    assert counts.backward(LAYERS, weights=False, image=True) == Cost(30, 68)
    assert counts.optimiser(LAYERS) == Cost(0, 4 * 8 * 9)
    assert Cost(1, 2) * 3 + Cost(1, 1) == Cost(4, 7)


def test_steps_by_hand():
    config = Config(
        captcha=CaptchaConfig(height=4, width=4, length=1, alphabet="ab"),
        refiner=RefinerConfig(width=2, blocks=1, kernel=1),
        discriminator=DiscriminatorConfig(widths=(1, 1, 1, 1)),
        refine=RefineConfig(batch_size=2, k_g=3, k_d=2, history_size=0),
    )
    # Products of 1x1 convolutions over 2 * 16 pixels: 1 -> 2, 2 -> 2, 2 -> 2, 2 -> 1 channels, two FLOPs each.
    own = 2 * 32 * (2 + 4 + 4 + 2)
    # 3x3 of stride 2 on 4 and on 2 pixels a side (5 and 2 taps), one pixel's 3x3 (1 tap) and two 1x1.
    judge = 2 * 2 * (5 * 5 + 2 * 2 + 1 + 1 + 2)
    assert counts.refiner_update(config).flops == 3 * own - 2 * 32 * 2 + 2 * judge
    assert counts.discriminator_update(config).flops == own + 2 * (3 * judge - 2 * 2 * 25)
    total = counts.refiner_update(config) * 3 + counts.discriminator_update(config) * 2
    assert counts.simgan_step(config) == total


def test_synthesis_by_hand():
    captcha = CaptchaConfig(height=9, width=16, length=3)
    # 16 for each pixel of 6 cells of 5 x 5, 8 for each pixel of 2 images, 4 products of 8^3 in 2 * 2 * 2 blocks.
    expected = 16 * 150 + 8 * 288
    assert counts.synthesis(2, captcha, cell=5, codec=False) == Cost(expected, 4 * 150 + 288)
    assert counts.synthesis(2, captcha, cell=5, codec=True).flops == expected + 4 * 2 * 512 * 8


def close_to_xla(layers, function, *arguments):
    counted, by_xla = counts.forward(layers).flops, benchmark.xla_flops(function, *arguments)
    # XLA counts biases, activations and norms too.
    assert counted <= by_xla <= 1.15 * counted


BATCH = jax.ShapeDtypeStruct((2, 50, 100, 1), jnp.float32)


def test_counts_of_a_refiner_agree_with_xla(key):
    config = RefinerConfig(width=16, blocks=1)
    params = jax.eval_shape(lambda: refiner.init(key, config=config))
    layers = counts.refiner_layers(2, CAPTCHA, config=config)
    close_to_xla(layers, functools.partial(refiner.apply, config=config), params, BATCH)


def test_counts_of_a_discriminator_agree_with_xla(key):
    config = DiscriminatorConfig(widths=(24, 24, 8, 8))
    params = jax.eval_shape(lambda: discriminator.init(key, config=config))
    layers = counts.discriminator_layers(2, CAPTCHA, config=config)
    close_to_xla(layers, functools.partial(discriminator.apply, config=config), params, BATCH)


@pytest.mark.parametrize("kind", ["slots", "seed"])
def test_counts_of_a_classifier_agree_with_xla(kind, key):
    config = ClassifierConfig(kind=kind, widths=(16, 32, 32), hidden=16)
    params = jax.eval_shape(lambda: classifier.init(key, CAPTCHA, config=config))
    layers = counts.classifier_layers(2, CAPTCHA, config=config)
    close_to_xla(layers, lambda params, x: classifier.apply(params, x, CAPTCHA, config=config), params, BATCH)


def test_seeds_at_once_train_as_in_turn():
    """Each seed has its own parameters, data and dropout; a vmap must mix none of them."""
    config = Config(
        captcha=CaptchaConfig(height=12, width=24, length=2, alphabet="abcd"),
        classifier=ClassifierConfig(widths=(8,), hidden=16, dropout=0.5),
        classify=ClassifyConfig(batch_size=4, steps=9, lr=0.02, warmup=1),
    )
    step_fn, whole = stages.classify_step(config, config.classify.steps), _suites.pool(config)
    init = jax.jit(
        functools.partial(classify.init, classifier_config=config.classifier, config=config.classify), static_argnums=1
    )
    data = [classify.Pool(*(leaf[start : start + 50] for leaf in whole)) for start in (0, 50)]
    starts = [[init(jax.random.key(seed), config.captcha) for seed in (0, 1)] for _ in range(2)]
    at_once = _suites.several_seeds(step_fn, starts[0], data, length=1)
    # The losses of the fourth step show three updates; parameters that change no output follow from rounding alone.
    together = [at_once()[0] for _ in range(4)]
    for seed in (0, 1):
        training = _suites.one_seed(step_fn, starts[1][seed], data[seed], length=1)
        for metrics in together:
            alone, _ = training()
            for name, value in alone.items():
                np.testing.assert_allclose(metrics[name][seed], value, rtol=1e-4)
    assert abs(together[-1]["cross_entropy"][0] - together[-1]["cross_entropy"][1]) > 0.01


def test_cases_take_turns():
    order: list[str] = []
    cases = [benchmark.Case(name, functools.partial(order.append, name), 1) for name in ("a", "b")]
    times = benchmark.measure(cases, repetitions=3)
    # To compile, to warm up, then in turns.
    assert order == ["a", "b", "a", "b"] + ["a", "b"] * 3
    assert [len(row.seconds) for row in times] == [3, 3]


def test_rows_hold_what_follows_from_the_times():
    double = jax.jit(lambda x: x * 2.0)
    x = jnp.ones((100,))
    cases = [
        benchmark.Case("ours", lambda: double(x), 4, Cost(100, 800), {"kept": 3}),
        benchmark.Case("peer", lambda: double(x), 2),
    ]
    made = benchmark.run("synthesis", cases, repetitions=3, settings={"batch": 4})
    ours, peer = made["rows"]
    assert ours["images_per_second"] == pytest.approx(4 / ours["seconds"]["median"])
    assert ours["seconds"]["low"] <= ours["seconds"]["median"] <= ours["seconds"]["high"]
    limits = made["ceilings"]
    ideal = max(100 / limits["matmul_flops_per_second"], 800 / limits["copy_bytes_per_second"])
    assert ours["share_of_limit"] == pytest.approx(ideal / ours["seconds"]["median"])
    assert ours["kept"] == 3 and "speed_of_ours" not in ours
    assert "flops" not in peer and set(peer["speed_of_ours"]) == {"median", "low", "high"}
    assert made["machine"]["versions"]["jax"] == jax.__version__
    assert json.loads(json.dumps(made)) == made


def test_table_of_a_file():
    machine = {
        "processor": "P", "cores": 2, "memory_bytes": 2**30, "backend": "cpu", "devices": ["cpu"],
        "load": [0.5, 1.0, 1.5], "versions": {"jax": "1"},
    }  # fmt: skip
    times = {"median": 0.5, "low": 0.25, "high": 1.5}
    rows = [
        {"name": "ours", "seconds": times, "images_per_second": 64.0, "first_seconds": 2.0, "flops_per_second": 5e9,
         "limit": "matmul", "share_of_limit": 0.25},
        {"name": "peer", "seconds": times, "images_per_second": 6400.0, "first_seconds": 2e-5, "speed_of_ours": times},
    ]  # fmt: skip
    made = {
        "suite": "refiner_step", "date": "D", "machine": machine, "settings": {"a": 1}, "rows": rows, "repetitions": 3,
        "ceilings": {"matmul_flops_per_second": 2e10, "copy_bytes_per_second": 1e10},
    }  # fmt: skip
    lines = benchmark_tables.markdown({"x.json": made}).splitlines()
    assert lines[0] == "### refiner_step (`x.json`)"
    assert lines[4] == "| ours | 500.0 ms | 250.0 ms to 1.50 s | 64 | 5 | 25% of matmul |  | 2.00 s |"
    assert lines[5] == "| peer | 500.0 ms | 250.0 ms to 1.50 s | 6,400 |  |  | 0.50 (0.25 to 1.50) | 20 us |"
    assert lines[6].startswith("| on a GPU or TPU | not measured |")
    assert "20 GFLOP/s" in lines[8] and "10.0 GB/s" in lines[8]


def test_end_to_end_from_a_summary(tmp_path):
    stages = [{"stage": "target", "seconds": 1.0}, {"stage": "refine", "seconds": 3.0, "steps": 6}]
    summary = {"preset": "cpu", "images": 10, "seconds": 4.0, "stages": stages}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    made = benchmark.end_to_end(tmp_path)
    assert [row["share"] for row in made["rows"]] == [0.25, 0.75]
    assert made["rows"][1]["seconds_per_step"] == 0.5
    assert "| refine | 3.0 s | 75.0% | 6 | 500.0 ms |" in benchmark_tables.markdown({"e.json": made})
    with pytest.raises(workdir.WorkdirError, match="missing"):
        benchmark.end_to_end(tmp_path / "none")


def test_document_holds_the_tables_of_its_files():
    files = sorted((ROOT / "docs" / "benchmarks").glob("*.json"))
    assert files
    made = benchmark_tables.markdown({file.name: workdir.read_json(file) for file in files})
    assert made in (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")


def test_growth_of_a_part(tmp_path):
    config = Config(refine=RefineConfig(batch_size=2, history_size=4))
    _growth.write_target(tmp_path, 3, drawn=2)
    row = _growth.part("load", 3, tmp_path, config)
    assert (row["part"], row["images"]) == ("load", 3) and row["seconds"] > 0
    assert row["peak_bytes"] > 2**20 and row["grown_bytes"] >= 0
    row = _growth.part("history", 5, tmp_path, config)
    assert row["images_per_second"] == pytest.approx(_growth.HISTORY_ROUNDS * 2 / row["seconds"])


def test_runs_of_the_notebook():
    picture = np.ones((50, 40), bool)
    assert _peers_pillow.runs(picture) == 0
    # Emptied columns 3, 10 and 20: 7 columns apart is too near, 10 is far enough.
    picture[:, [3, 10, 20]] = False
    assert _peers_pillow.runs(picture) == 1


def test_drawing_of_the_notebook():
    lines = np.zeros((50, 100), bool)
    lines[7] = True
    drawer = _peers_pillow.Drawer(lines, alphabet="ab")
    picture, text = drawer.draw()
    assert picture.shape == (50, 100) and picture[7].all() and len(text) == 4 and set(text) <= {"a", "b"}
    assert 200 < picture.sum() < 2000
    again, _ = _peers_pillow.Drawer(lines, alphabet="ab").draw()
    np.testing.assert_array_equal(picture, again)


def test_script_writes_a_file_and_prints_its_table(tmp_path, run_script):
    out = tmp_path / "new" / "classifier.json"
    settings = ["--config.classifier.widths=(8,)", "--config.classifier.hidden=8", "--config.classify.batch_size=2"]
    done = run_script("experiments.benchmark", "--suite=classifier_step", f"--out={out}", "--repetitions=2", *settings)
    assert done.returncode == 0, done.stderr
    made = json.loads(out.read_text())
    assert made["rows"][0]["name"] == "simgan_jax" and made["rows"][0]["images"] == 2
    assert made["settings"]["classifier"]["widths"] == [8]
    layers = counts.classifier_layers(2, CAPTCHA, config=ClassifierConfig(widths=(8,), hidden=8))
    assert made["rows"][0]["forward_flops"] == counts.forward(layers).flops
    config = Config(classifier=ClassifierConfig(widths=(8,), hidden=8), classify=ClassifyConfig(batch_size=2))
    assert made["rows"][0]["flops"] == counts.classify_step(config).flops
    assert done.stdout == benchmark_tables.markdown({out.name: made})


def test_script_asks_for_what_it_needs(run_script):
    done = run_script("experiments.benchmark", "--suite=synthesis")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "ConfigError: --suite and --out: give both, or --markdown"


def test_refiners_that_the_peers_do_not_have():
    with pytest.raises(ConfigError, match="config.refiner.latents=1: the peers have none"):
        _suites.simgan_cases("refiner_step", Config(refiner=RefinerConfig(latents=1)), count=1)
