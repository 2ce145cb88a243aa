"""The shape of the code, read from its syntax trees: who imports whom, who touches the world, where labels go."""

import ast
import fnmatch
import graphlib
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

TOP_LEVEL = {
    *("simgan_jax", "experiments", "tests", "data", "docs", "setup.cfg", "README.md"),
    *("pyproject.toml", "constraints.txt", "Makefile", ".ci", ".gitignore"),
}

# What each module of the library may import of the library; a new module is entered here. The answers of the embedded
# contest and real labels are out of reach of whatever trains: no module may import `contest` or `labels`.
NOTHING: set[str] = set()
NETWORK = {"config", "convolution", "backend"}
IMPORTS = {
    "__init__": NOTHING,
    "config": NOTHING,
    "alphabet": NOTHING,
    "images": NOTHING,
    "backend": NOTHING,
    "losses": NOTHING,
    "history": NOTHING,
    "alarms": NOTHING,
    "estimate": NOTHING,
    "evaluate": NOTHING,
    "hosts": NOTHING,
    "atomic": {"hosts"},
    "benchmark_tables": NOTHING,
    "charts": NOTHING,
    "grids": NOTHING,
    "labels": NOTHING,
    "presets": {"config"},
    "metrics": {"atomic", "hosts"},
    "checkpoints": {"hosts"},
    "stack": NOTHING,
    "challenge": {"atomic", "stack"},
    "contest": {"challenge", "config"},
    "contest_client": {"atomic", "challenge"},
    "reporting": {"atomic", "charts", "grids"},
    "workdir": {"atomic", "config", "hosts"},
    "convolution": {"backend"},
    "refiner": NETWORK,
    "discriminator": NETWORK,
    "classifier": NETWORK,
    "glyphs": {"config"},
    "layout": {"config"},
    "target": {"config", "images"},
    "synthesizer": {"backend", "blocks", "config", "images", "layout", "target"},
    "fit": {"config", "layout", "synthesizer"},
    "rescore": {"backend", "config", "fit", "reading", "synthesizer"},
    "state": {"config", "refiner", "discriminator", "history"},
    "steps": {
        *(
            "backend",
            "blocks",
            "config",
            "devices",
            "images",
            "refiner",
            "discriminator",
            "classifier",
            "classify",
            "losses",
            "history",
        ),
        "state",
    },
    "train": {"backend"},
    "counts": {"config"},
    "tables": {"evaluate"},
    "pooling": {"evaluate", "tables"},
    "studies": {"config", "presets"},
    "parts": {"config", "studies"},
    "readers": {"arms", "classifier", "classify", "config", "parts", "reading", "rounds", "session", "studies"},
    "measures": {"config", "discriminator", "evaluate", "images", "losses", "train"},
    "blocks": {"devices"},
    "classify": {"backend", "blocks", "config", "devices", "images", "classifier", "losses"},
    "adapt": {"backend", "blocks", "config", "devices", "images", "classifier", "classify"},
    "reading": {"alphabet", "backend", "classifier", "config", "images"},
    "session": {"config", "devices", "challenge", "checkpoints", "hosts", "metrics", "target", "train", "workdir"},
    "stages": {
        *("config", "images", "target", "glyphs", "layout", "synthesizer", "fit", "refiner", "classify", "adapt"),
        *("backend", "classifier", "losses", "reading", "steps"),
    },
    "finish": {"challenge", "estimate", "metrics", "reading", "reporting", "rescore", "session", "workdir"},
    "figures": {"classify", "grids", "reporting", "session", "stages"},
    "deciding": {"estimate", "reading", "rescore", "session"},
    "arms": {
        *("alarms", "challenge", "classifier", "classify", "estimate", "reading", "reporting", "session", "stages"),
    },
    "rounds": {
        *("adapt", "alarms", "arms", "classifier", "classify", "config", "deciding", "estimate", "figures", "reading"),
        *("session", "stages"),
    },
    "pipeline": {
        *("alarms", "arms", "classifier", "classify", "config", "deciding", "figures", "finish", "refiner", "rounds"),
        *("session", "stages", "state", "steps"),
    },
    "predictor": {
        *("challenge", "checkpoints", "classifier", "classify", "config", "arms", "reading", "session", "stages"),
        *("rescore", "rounds", "target", "workdir"),
    },
    "benchmark": {"counts", "workdir"},
    "devices": {"config", "history"},
    "workbench": {
        *("adapt", "alarms", "alphabet", "atomic", "classifier", "classify", "config", "deciding", "estimate", "grids"),
        *("figures", "measures", "metrics", "parts", "pipeline", "readers", "reading", "refiner", "session", "stages"),
        *("arms", "rounds", "studies", "workdir"),
    },
    "adoption": {"parts", "readers", "session", "studies", "workbench", "workdir"},
    "ablation": {
        *("adoption", "atomic", "config", "evaluate", "finish", "reporting", "studies", "tables", "workbench"),
        *("session", "workdir"),
    },
}

# Modules that may touch files, sockets and the clock; the first line of their docstring says so with '(io)'.
IO = {
    *("ablation", "adoption", "atomic", "benchmark", "challenge", "charts", "checkpoints", "contest", "contest_client"),
    *("arms", "deciding", "figures", "finish", "hosts", "rounds"),
    *("glyphs", "grids", "labels", "metrics", "pipeline", "predictor", "readers", "reporting", "session", "stack"),
    *("stages", "workbench", "workdir"),
}
LINEN = {"convolution", "refiner", "discriminator", "classifier"}

CLOCK_AND_CHANCE = {"datetime", "numpy.random", "random", "secrets", "time", "uuid"}
WORLD = {
    *("PIL", "http", "io", "matplotlib", "orbax", "os", "pathlib", "requests", "shutil", "signal", "socket"),
    *("subprocess", "sys", "tempfile", "tensorboardX", "threading", "tqdm", "urllib"),
}
FLAGS = {"absl.app", "absl.flags", "argparse", "ml_collections.config_flags"}
FILE_CALLS = {"open", "read_bytes", "read_text", "write_bytes", "write_text"}
READ_LABELS = {"evaluate", "ablate"}
LABEL_FILE = re.compile(r"labels?\w*\.(csv|json|txt|npy|npz)", re.IGNORECASE)


def modules(package: str) -> dict[str, ast.Module]:
    """The syntax tree of each module of a package, by module name."""
    return {path.stem: ast.parse(path.read_text(), str(path)) for path in sorted((ROOT / package).glob("*.py"))}


LIBRARY = modules("simgan_jax")
EXPERIMENTS = modules("experiments")


def imported(tree: ast.Module, package: str) -> Iterator[tuple[str, int]]:
    """Dotted name and line of everything that a module imports, wherever in the module that stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parent = ".".join(filter(None, [package if node.level else "", node.module]))
            yield from ((f"{parent}.{alias.name}", node.lineno) for alias in node.names)


def dotted(node: ast.AST) -> str:
    """`a.b.c` of an attribute or name node; empty for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return ""


def library_imports(tree: ast.Module, package: str) -> dict[str, int]:
    """The library's modules that a module imports, with the line; the bare package counts as `simgan_jax`."""
    names = [(name.split("."), line) for name, line in imported(tree, package)]
    return {(parts[1] if len(parts) > 1 else parts[0]): line for parts, line in names if parts[0] == "simgan_jax"}


def within(name: str, roots: set[str]) -> bool:
    return any(name == root or name.startswith(root + ".") for root in roots)


def calls(tree: ast.Module) -> Iterator[tuple[str, ast.Call]]:
    """The last part of each called name, and the call."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield dotted(node.func).rpartition(".")[2], node


library_modules = pytest.mark.parametrize("name", LIBRARY)
pure_modules = pytest.mark.parametrize("name", [name for name in LIBRARY if name not in IO])


def test_packages_are_flat():
    assert "config" in LIBRARY
    assert [*(ROOT / "simgan_jax").glob("*/*.py"), *(ROOT / "experiments").glob("*/*.py")] == []


@library_modules
def test_imports_point_one_way(name):
    assert name in IMPORTS, f"simgan_jax/{name}.py: enter it in IMPORTS with what it may import"
    for module, line in library_imports(LIBRARY[name], "simgan_jax").items():
        where = f"simgan_jax/{name}.py:{line} imports {module}"
        assert module in LIBRARY, f"{where}, which is no module of the library"
        assert module in IMPORTS[name], where


def test_no_cycles():
    graph = {name: set(library_imports(tree, "simgan_jax")) for name, tree in LIBRARY.items()}
    graphlib.TopologicalSorter(graph).prepare()


@library_modules
def test_library_imports_no_scripts_and_nothing_by_string(name):
    for imported_name, line in imported(LIBRARY[name], "simgan_jax"):
        assert not within(imported_name, {"experiments", "tests"} | FLAGS), f"{name}.py:{line} imports {imported_name}"
    for called, call in calls(LIBRARY[name]):
        assert called not in {"import_module", "__import__", "exec", "eval"}, f"{name}.py:{call.lineno} calls {called}"


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_scripts_import_the_library_not_each_other(name):
    for imported_name, line in imported(EXPERIMENTS[name], "experiments"):
        package, _, module = imported_name.partition(".")
        where = f"experiments/{name}.py:{line} imports {imported_name}"
        assert package != "tests", where
        assert package != "experiments" or module.startswith("_"), where


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_scripts_are_thin(name):
    for node in EXPERIMENTS[name].body:
        if isinstance(node, ast.FunctionDef) and node.name == "main" and node.end_lineno is not None:
            assert node.end_lineno - node.lineno < 60, f"experiments/{name}.py: move work of main into the library"


@library_modules
def test_linen_stays_in_the_networks(name):
    for imported_name, line in imported(LIBRARY[name], "simgan_jax"):
        module_system = imported_name == "flax" or within(imported_name, {"flax.linen", "flax.nnx"})
        assert not module_system or name in LINEN, f"simgan_jax/{name}.py:{line} imports {imported_name}"


@pure_modules
def test_pure_modules_do_not_touch_the_world(name):
    for imported_name, line in imported(LIBRARY[name], "simgan_jax"):
        assert not within(imported_name, CLOCK_AND_CHANCE | WORLD), f"simgan_jax/{name}.py:{line} {imported_name}"
    for node in ast.walk(LIBRARY[name]):
        if isinstance(node, ast.Attribute):
            assert dotted(node) not in {"np.random", "numpy.random"}, f"simgan_jax/{name}.py:{node.lineno} np.random"
    for called, call in calls(LIBRARY[name]):
        assert called not in FILE_CALLS, f"simgan_jax/{name}.py:{call.lineno} calls {called}"


@pure_modules
def test_pure_modules_import_pure_modules(name):
    assert set(library_imports(LIBRARY[name], "simgan_jax")) & IO == set()


@library_modules
def test_library_does_not_print(name):
    for called, call in calls(LIBRARY[name]):
        assert called not in {"print", "input"}, f"simgan_jax/{name}.py:{call.lineno} calls {called}"


@library_modules
def test_io_modules_say_so(name):
    first_line = (ast.get_docstring(LIBRARY[name]) or "").partition("\n")[0]
    assert first_line, f"simgan_jax/{name}.py has no docstring"
    assert ("(io)" in first_line) == (name in IO), f"simgan_jax/{name}.py: {first_line}"


def test_no_module_reaches_answers_or_labels():
    for name, allowed in IMPORTS.items():
        assert not allowed & {"contest", "labels"}, f"IMPORTS lets {name} see what must not be known"


def test_labels_are_imported_by_the_scoring_scripts_alone():
    for package, trees in (("simgan_jax", LIBRARY), ("experiments", EXPERIMENTS)):
        for name, tree in trees.items():
            if "labels" in library_imports(tree, package):
                assert package == "experiments" and name in READ_LABELS, f"{package}/{name}.py imports labels"


def test_labels_files_are_named_by_the_scoring_code_alone():
    for package, names, readers in (("simgan_jax", LIBRARY, {"labels"}), ("experiments", EXPERIMENTS, READ_LABELS)):
        for name in set(names) - readers:
            found = LABEL_FILE.search((ROOT / package / f"{name}.py").read_text())
            assert found is None, f"{package}/{name}.py mentions {found and found.group()}"


def test_no_other_script_has_a_flag_for_labels():
    for name in set(EXPERIMENTS) - READ_LABELS:
        for called, call in calls(EXPERIMENTS[name]):
            flag = call.args[0] if called.startswith("DEFINE_") and call.args else None
            is_label = isinstance(flag, ast.Constant) and re.search("label|answer|truth", str(flag.value))
            assert not is_label, f"experiments/{name}.py:{call.lineno} has a flag for labels"


@pytest.mark.parametrize("package", ["simgan_jax", "experiments", "tests"])
def test_no_module_is_long(package):
    lengths = {path.name: len(path.read_text().splitlines()) for path in (ROOT / package).rglob("*.py")}
    assert {name: length for name, length in lengths.items() if length > 400} == {}


def test_top_level():
    if (ROOT / ".git").exists():
        listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        entries = {line.split("/")[0] for line in listing.splitlines()}
    else:
        ignored = [line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines()]
        names = {path.name for path in ROOT.iterdir()}
        entries = {name for name in names if not any(fnmatch.fnmatch(name, pattern) for pattern in ignored)}
    assert entries <= TOP_LEVEL
