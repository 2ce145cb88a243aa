"""Makes one table of a study whose seeds ran in several workdirs, on one machine or on many.

    python -m experiments.pool --results=seeds01.json,seed2.json --out=route.json

Each result is what `experiments.ablate --out=JSON` wrote, or WORKDIR/STUDY/result.json: the same study, arms, preset,
flags and target, other seeds; what was pooled may be pooled again. Prints the table in Markdown. Exits 2 with one line
if they do not belong together.
"""

import json
import pathlib
import sys

from absl import app, flags

from simgan_jax import atomic, pooling, tables, workdir

_RESULTS = flags.DEFINE_list("results", None, "JSON files of experiments.ablate, at least two.", required=True)
_OUT = flags.DEFINE_string("out", None, "Also write the numbers to this JSON file.")


def main(argv: list[str]) -> int:
    if argv[1:]:
        raise app.UsageError(f"unknown argument {argv[1]!r}")
    try:
        result = pooling.pool({path: _read(path) for path in _RESULTS.value})
        if _OUT.value:
            workdir.write_json(pathlib.Path(_OUT.value), result)
    except (pooling.PoolingError, atomic.WriteError) as error:
        print(error, file=sys.stderr)
        return 2
    print(tables.markdown(result["rows"]), end="")
    return 0


def _read(path: str) -> pooling.Result:
    try:
        result = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise pooling.PoolingError(f"{path}: {error}: give results of experiments.ablate") from None
    if not isinstance(result, dict):
        raise pooling.PoolingError(f"{path}: no JSON object: give results of experiments.ablate")
    return result


if __name__ == "__main__":
    app.run(main)
