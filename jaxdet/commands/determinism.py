"""Asking XLA for the same bits in each run."""

import os

from ml_collections import ConfigDict

# It also keeps XLA from trying which kernel is the fastest, which may end otherwise each time.
FLAG = "--xla_gpu_deterministic_ops"


def ask_for(config: ConfigDict) -> None:
    """Asks where `config.deterministic` says so, and the environment does not say otherwise.

    XLA reads its flags once, so no device may have been used before. Only GPUs heed this one.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if config.deterministic and FLAG not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {FLAG}=true".strip()
