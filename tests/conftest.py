"""Set up before the first import of jax: eight devices on the CPU, annotations checked."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

from pathlib import Path

import hypothesis
import numpy as np
import pytest
from jaxtyping import install_import_hook

# An int may stand where a float is annotated (PEP 484's numeric tower).
install_import_hook("jaxdet", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

GOLDENS = Path(__file__).parent / "goldens"

hypothesis.settings.register_profile("jaxdet", deadline=None, max_examples=20, derandomize=True)
hypothesis.settings.load_profile("jaxdet")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """What commands keep on disk of compiled programs serves the tests of this process alone."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def soon_compiled(own_cache):
    """The environment of processes that compile much and run little: half the time or less."""
    flags = (
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        "--xla_cpu_parallel_codegen_split_count=1",
    )
    return {**os.environ, "XLA_FLAGS": " ".join(flags)}


@pytest.fixture(scope="session")
def golden():
    """`golden(name)` gives the arrays of tests/goldens/<name>.npz as a dict."""

    def load(name: str) -> dict[str, np.ndarray]:
        with np.load(GOLDENS / f"{name}.npz") as arrays:
            return dict(arrays)

    return load
