"""The library's public functions keep to one way of being called: state or params, key, data, `*`, options."""

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

import simgan_jax

MODULES = [importlib.import_module(f"simgan_jax.{info.name}") for info in pkgutil.iter_modules(simgan_jax.__path__)]
POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def public(module: ModuleType) -> list[tuple[str, Any]]:
    """What a module itself defines for others: functions, jitted or not, and classes."""
    members = [(f"{module.__name__}.{name}", value) for name, value in vars(module).items() if not name.startswith("_")]
    return [(name, value) for name, value in members if callable(value) and value.__module__ == module.__name__]


def is_pure(module: ModuleType) -> bool:
    return "(io)" not in (module.__doc__ or "").partition("\n")[0]


MEMBERS = [member for module in MODULES for member in public(module)]
FUNCTIONS = [
    (name, value)
    for module in MODULES
    if is_pure(module)
    for name, value in public(module)
    if not inspect.isclass(value)
]


def names(members: list[tuple[str, Any]]) -> list[str]:
    return [name.removeprefix("simgan_jax.") for name, _ in members]


every_member = pytest.mark.parametrize(("name", "member"), MEMBERS, ids=names(MEMBERS))
every_function = pytest.mark.parametrize(("name", "function"), FUNCTIONS, ids=names(FUNCTIONS))


def parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    return list(inspect.signature(function).parameters.values())


def rank(parameter: inspect.Parameter) -> int:
    """0 for state (by name or type) and parameters, 1 for keys, 2 for data."""
    name, kind = parameter.name, getattr(parameter.annotation, "__name__", "")
    if name.endswith(("state", "params")) or kind.endswith("State"):
        return 0
    return 1 if name in ("key", "keys") or name.endswith(("_key", "_keys")) else 2


@every_member
def test_has_a_docstring(name, member):
    text = inspect.getdoc(member) or ""
    # Dataclasses and named tuples without a docstring get their signature as one.
    assert text and not text.startswith(f"{member.__name__}("), f"{name} has no docstring"


@every_function
def test_keys_are_called_key(name, function):
    for parameter in parameters(function):
        assert "rng" not in parameter.name, f"{name}: `key` rather than `{parameter.name}`"
        assert parameter.name not in ("seed", "prng"), f"{name} takes a key, not a {parameter.name}"


@every_function
def test_state_then_key_then_data(name, function):
    order = [parameter for parameter in parameters(function) if parameter.kind in POSITIONAL]
    assert order == sorted(order, key=rank), f"{name}({', '.join(parameter.name for parameter in order)})"


@every_function
def test_defaults_are_keyword_only(name, function):
    for parameter in parameters(function):
        has_default = parameter.default is not inspect.Parameter.empty
        assert not has_default or parameter.kind not in POSITIONAL, f"{name}: `*` before {parameter.name}"


def test_functions_were_found():
    assert FUNCTIONS
