"""Times what costs time, beside the machine's own limits and other frameworks, and writes JSON.

    python -m experiments.benchmark --suite=refiner_step --out=docs/benchmarks/refiner_step.json
    python -m experiments.benchmark --suite=end_to_end --workdir=runs/embedded --out=docs/benchmarks/end_to_end.json
    python -m experiments.benchmark --markdown=docs/benchmarks

The settings are those of simgan_jax/config.py, or of --preset; --config.GROUP.FIELD=VALUE overrides them. PyTorch and
Keras take part where they are installed (`pip install -e .[peers]`). --markdown prints the tables of a folder's files.
"""

import dataclasses
import pathlib

import jax
from absl import flags

from experiments import _flags, _growth, _suites
from simgan_jax import benchmark, benchmark_tables, config, workdir

SUITES = (*_suites.SIMGAN_STEPS, "classifier_step", "seeds", "synthesis", "growth", "end_to_end")
_SUITE = flags.DEFINE_enum("suite", None, SUITES, "What to time.")
_OUT = flags.DEFINE_string("out", None, "JSON file to write.")
_REPETITIONS = flags.DEFINE_integer("repetitions", 15, "Times that each case is run after warming up.", lower_bound=1)
_SIZES = flags.DEFINE_list("sizes", ["1000", "10000", "100000"], "Numbers of images of the suite `growth`.")
_PARTS = flags.DEFINE_list("parts", list(_growth.PARTS), "Parts of the suite `growth`.")
_MARKDOWN = flags.DEFINE_string("markdown", None, "Folder of JSON files whose tables to print.")


def main() -> int:
    if _MARKDOWN.value is not None:
        files = sorted(pathlib.Path(_MARKDOWN.value).glob("*.json"))
        contents = {file.name: workdir.read_json(file) for file in files}
        for name, content in contents.items():
            if "suite" not in content:
                raise config.ConfigError(f"--markdown={_MARKDOWN.value}: {name} is of no benchmark: give their folder")
        print(benchmark_tables.markdown(contents), end="")
        return 0
    if _SUITE.value is None or _OUT.value is None:
        raise config.ConfigError("--suite and --out: give both, or --markdown")
    suite = _SUITE.value
    # Programs from the cache would make a first call look cheap.
    jax.config.update("jax_enable_compilation_cache", False)
    settings = _flags.chosen_config(config.Config())
    if suite == "end_to_end":
        content = benchmark.end_to_end(_flags.workdir())
    elif suite == "growth":
        if not all(size.isdecimal() and int(size) for size in _SIZES.value):
            raise config.ConfigError(f"--sizes={','.join(_SIZES.value)}: give whole numbers above 0")
        if unknown := set(_PARTS.value) - set(_growth.PARTS):
            raise config.ConfigError(f"--parts={min(unknown)}: choose among {', '.join(_growth.PARTS)}")
        rows = _growth.measure([int(size) for size in _SIZES.value], settings, parts=_PARTS.value)
        content = benchmark.content(suite, rows, settings={})
    else:
        if suite == "synthesis":
            cases = _suites.synthesis_cases(settings)
        elif suite == "seeds":
            cases = _suites.seeds_cases(settings)
        else:
            _flags.divide_cpu()
            count = _flags.device_count(settings)
            if suite == "classifier_step":
                cases = _suites.classifier_cases(settings, count=count)
            else:
                cases = _suites.simgan_cases(suite, settings, count=count)
        parts = {"synthesis": "synthesizer", "classifier_step": "classifier,classify", "seeds": "classifier,classify"}
        groups = parts.get(suite, "refiner,discriminator,refine").split(",")
        chosen = {group: dataclasses.asdict(getattr(settings, group)) for group in groups}
        content = benchmark.run(suite, cases, repetitions=_REPETITIONS.value, settings=chosen)
    benchmark.write(_OUT.value, content)
    print(benchmark_tables.markdown({pathlib.Path(_OUT.value).name: content}), end="")
    return 0


if __name__ == "__main__":
    _flags.run(main)
