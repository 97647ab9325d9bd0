"""Set up before the first import of jax: eight devices on the CPU, annotations checked."""

import os
from importlib.metadata import version

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "0"  # They cost a tenth of the tracing.
# The suite compiles much and runs little: programs are made soon, and need not be fast.
os.environ["XLA_FLAGS"] = " ".join(
    [
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        "--xla_cpu_parallel_codegen_split_count=1",
        # A later XLA has no others, and ends at a flag that it does not know.
        *["--xla_cpu_use_fusion_emitters=false"] * version("jaxlib").startswith("0.10."),
        os.environ.get("XLA_FLAGS", ""),  # Last, and so these may say otherwise.
    ]
)

from pathlib import Path

import hypothesis
import jax
import numpy as np
import pytest
from jaxtyping import install_import_hook

# An int may stand where a float is annotated (PEP 484's numeric tower).
install_import_hook("jaxdet", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

GOLDENS = Path(__file__).parent / "goldens"
WORTH_KEEPING = 0.2  # Seconds: to compile it takes longer than to write and read.

hypothesis.settings.register_profile("jaxdet", deadline=None, max_examples=20, derandomize=True)
hypothesis.settings.load_profile("jaxdet")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """What is compiled is kept for the other tests, workers and processes of this run alone."""
    base = tmp_path_factory.getbasetemp()
    # The workers of pytest-xdist have folders of their own beside one another.
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache"
    os.environ["XDG_CACHE_HOME"] = str(folder)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder / "programs")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = str(WORTH_KEEPING)
    jax.config.update("jax_compilation_cache_dir", str(folder / "programs"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", WORTH_KEEPING)


@pytest.fixture(scope="session")
def one_device(own_cache):
    """The environment of processes of their own with a single device."""
    return {**os.environ, "JAX_NUM_CPU_DEVICES": "1"}


@pytest.fixture(scope="session")
def golden():
    """`golden(name)` gives the arrays of tests/goldens/<name>.npz as a dict."""

    def load(name: str) -> dict[str, np.ndarray]:
        with np.load(GOLDENS / f"{name}.npz") as arrays:
            return dict(arrays)

    return load
