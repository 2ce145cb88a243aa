"""The strict settings of conftest.py bite, here and in the scripts that tests start."""

import json
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import pytest

SETTINGS = ("jax_numpy_rank_promotion", "jax_debug_key_reuse", "jax_num_cpu_devices")


def test_rank_promotion_raises():
    with pytest.raises(ValueError, match="rank_promotion"):
        jnp.ones((2, 1)) + jnp.ones(2)


def test_key_reuse_raises(key):
    jax.random.normal(key)
    with pytest.raises(jax.errors.KeyReuseError):
        jax.random.normal(key)


def test_warnings_raise():
    with pytest.raises(UserWarning):
        warnings.warn("on purpose", stacklevel=1)


def test_two_devices():
    assert jax.default_backend() != "cpu" or jax.device_count() == 2


def test_child_processes_inherit_the_settings():
    code = f"import jax, json; print(json.dumps([getattr(jax.config, name) for name in {SETTINGS}]))"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(child.stdout) == ["raise", True, 2]
