"""Flags and exit codes that the scripts share."""

import contextlib
import dataclasses
import functools
import io
import os
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import jax
from absl import app, flags, logging
from ml_collections import config_dict, config_flags

from simgan_jax import alarms, challenge, checkpoints, config, devices, hosts, metrics, presets
from simgan_jax import workdir as workdirs

USER_ERRORS = (
    config.ConfigError,
    challenge.ChallengeError,
    checkpoints.CheckpointError,
    workdirs.WorkdirError,
    metrics.MetricsError,
    alarms.CollapseError,
    hosts.HostsError,
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
_DEVICES = flags.DEFINE_integer(
    "devices", 0, "Devices to divide each batch over; 0 for all there are, of which a CPU has two.", lower_bound=0
)
_MULTIHOST = flags.DEFINE_bool(
    "multihost",
    False,
    "This is one of several processes, all started with the same flags, that train together on all their devices, in "
    "one workdir that all see. JAX finds the others under Slurm, Kubernetes, Open MPI and on TPU pods.",
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0, for --multihost where JAX cannot find it."
)
_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "Number of processes, for --multihost where JAX cannot find it.", lower_bound=1
)
_PROCESS = flags.DEFINE_integer(
    "process_id", None, "Which of them this is, from 0, for --multihost where JAX cannot find it.", lower_bound=0
)


def _define_config() -> flags.FlagHolder[config_dict.ConfigDict]:
    fields = config_dict.ConfigDict(dataclasses.asdict(config.Config()))
    usage = "Overrides a field of the preset: --config.GROUP.FIELD=VALUE; fields stand in simgan_jax/config.py."
    try:
        # The overrides of the command line are looked at here already.
        return config_flags.DEFINE_config_dict("config", fields, usage)
    except (AttributeError, KeyError) as error:
        _refuse(f"no such --config field: {_one_line(error)}: see simgan_jax/config.py")


def _refuse(message: str) -> NoReturn:
    print(message, file=sys.stderr)
    sys.exit(2)


def _one_line(error: Exception) -> str:
    return " ".join(str(error.args[0] if error.args else error).split()).rstrip(".")


_CONFIG = _define_config()


def chosen_config(default: config.Config | None = None) -> config.Config:
    """The preset, or `default` unless one was named, with the command line's overrides."""
    values = config_flags.get_override_values(flags.FLAGS[_CONFIG.name])
    start = default if default is not None and not flags.FLAGS["preset"].present else presets.PRESETS[PRESET.value]
    return presets.override(start, values)


def device_count(settings: config.Config) -> int:
    """Devices of this process that training is divided over."""
    return _DEVICES.value or devices.usual_count(settings)


def workdir() -> pathlib.Path:
    """The run's folder."""
    if not WORKDIR.value:
        raise config.ConfigError("--workdir='': give a folder")
    return pathlib.Path(os.path.abspath(WORKDIR.value))


def divide_cpu() -> None:
    """Makes two devices of a CPU of several cores, before JAX starts, unless `JAX_NUM_CPU_DEVICES` says how many.

    Training divides its batches over them: two programs keep both cores busy where the many small operations of one
    leave a core waiting. What does not train has no need of them, and is a little slower with two.
    """
    if "JAX_NUM_CPU_DEVICES" not in os.environ and len(os.sched_getaffinity(0)) > 1:
        jax.config.update("jax_num_cpu_devices", 2)


@contextlib.contextmanager
def _together(multihost: bool) -> Iterator[None]:
    """The processes of --multihost, of which one prints; or this one alone."""
    places = (_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    if not _MULTIHOST.value:
        if places != (None, None, None):
            raise config.ConfigError("--coordinator, --num_processes, --process_id: give --multihost with them")
        yield
        return
    if not multihost:
        raise config.ConfigError("--multihost: pretrain, train_simgan, train_classifier and run take it: leave it out")
    if _DEVICES.value:
        raise config.ConfigError(f"--devices={_DEVICES.value}: --multihost takes all devices: leave one of them out")
    hosts.start(*places)
    with contextlib.nullcontext() if hosts.is_first() else contextlib.redirect_stdout(io.StringIO()):
        yield


def run(main: Callable[[], int | None], *, multihost: bool = False) -> None:
    """Parses flags and runs a script; what a user can mend ends as one line on stderr and exit code 2.

    `multihost` tells whether the script trains, and can be one of several processes.
    """

    def guarded(argv: Sequence[str]) -> int | None:
        if argv[1:]:
            print(f"unknown argument {argv[1]!r}: see --help", file=sys.stderr)
            return 2
        if _CACHE.value and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
            jax.config.update("jax_compilation_cache_dir", _CACHE.value)
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
        if multihost:
            divide_cpu()
        try:
            with _together(multihost):
                return main()
        except USER_ERRORS as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            return 2

    # Orbax tells every step of each checkpoint at the level of information.
    logging.set_verbosity(logging.WARNING)
    app.run(guarded, flags_parser=_parse)


def _replace(flag: flags.Flag[Any], parse: Callable[[str], None], value: str) -> None:
    flag.present = 0
    parse(value)


def _parse(argv: Sequence[str]) -> list[str]:
    for name in flags.FLAGS:
        flag = flags.FLAGS[name]
        if name.startswith(f"{_CONFIG.name}.") and isinstance(flag, flags.MultiFlag):
            # ml_collections joins what is given to several values; as of any flag, the last counts.
            flag.parse = functools.partial(_replace, flag, flag.parse)  # type: ignore[method-assign]
    # What the scripts share stands in their --help as their own.
    for module, shared in flags.FLAGS.flags_by_module_dict().items():
        for flag in shared if module.startswith("experiments.") else ():
            flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
    try:
        return flags.FLAGS(list(argv))
    except flags.Error as error:
        _refuse(f"{_one_line(error)}: see --help")
    except (AttributeError, KeyError, TypeError) as error:
        _refuse(f"no such --config field or value: {_one_line(error)}: see simgan_jax/config.py")
