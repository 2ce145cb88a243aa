"""Flags and exit codes that the scripts share."""

import dataclasses
import os
import pathlib
import sys
from collections.abc import Callable, Sequence

import jax
from absl import app, flags, logging
from ml_collections import config_dict, config_flags

from simgan_jax import alarms, challenge, checkpoints, config, metrics, presets
from simgan_jax import workdir as workdirs

USER_ERRORS = (
    config.ConfigError,
    challenge.ChallengeError,
    checkpoints.CheckpointError,
    workdirs.WorkdirError,
    metrics.MetricsError,
    alarms.CollapseError,
    OSError,
)

PRESET = flags.DEFINE_enum("preset", "cpu", sorted(presets.PRESETS), "Named configuration to start from.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of everything that is drawn.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; made, or continued where it stopped.")
_CACHE = flags.DEFINE_string(
    "compilation_cache",
    os.path.join(os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache")), "simgan_jax"),
    "Folder for compiled programs, which later runs load instead of compiling; empty for none.",
)
_CONFIG = config_flags.DEFINE_config_dict(
    "config",
    config_dict.ConfigDict(dataclasses.asdict(config.Config())),
    "Overrides a field of the preset: --config.GROUP.FIELD=VALUE. Groups and fields stand in simgan_jax/config.py.",
)


def chosen_config() -> config.Config:
    """The preset with the command line's overrides."""
    values = config_flags.get_override_values(flags.FLAGS[_CONFIG.name])
    return presets.override(presets.PRESETS[PRESET.value], values)


def workdir() -> pathlib.Path:
    """The run's folder."""
    return pathlib.Path(WORKDIR.value or "")


def run(main: Callable[[], int | None]) -> None:
    """Parses flags and runs a script; what a user can mend ends as one line on stderr and exit code 2."""

    def guarded(argv: Sequence[str]) -> int | None:
        if argv[1:]:
            print(f"unknown argument {argv[1]!r}: see --help", file=sys.stderr)
            return 2
        if _CACHE.value and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
            jax.config.update("jax_compilation_cache_dir", _CACHE.value)
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
        try:
            return main()
        except USER_ERRORS as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            return 2

    # Orbax tells every step of each checkpoint at the level of information.
    logging.set_verbosity(logging.WARNING)
    app.run(guarded, flags_parser=_parse)


def _parse(argv: Sequence[str]) -> list[str]:
    try:
        return app.parse_flags_with_usage(list(argv))
    except (AttributeError, KeyError) as error:
        reason = " ".join(str(error.args[0]).split()) if error.args else str(error)
        print(f"no such --config field: {reason}: see simgan_jax/config.py", file=sys.stderr)
        sys.exit(2)
