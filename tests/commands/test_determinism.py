import os

import pytest
from ml_collections import ConfigDict

from jaxdet.commands import determinism


@pytest.mark.parametrize(
    "wanted, before, after",
    [
        (False, "--a=1", "--a=1"),
        (True, "--a=1", "--a=1 --xla_gpu_deterministic_ops=true"),
        (True, None, "--xla_gpu_deterministic_ops=true"),
        (True, "--xla_gpu_deterministic_ops=false", "--xla_gpu_deterministic_ops=false"),
    ],
)
def test_xla_is_asked_unless_the_environment_has_decided(monkeypatch, wanted, before, after):
    monkeypatch.setenv("XLA_FLAGS", before or "")
    if before is None:
        monkeypatch.delenv("XLA_FLAGS")
    determinism.ask_for(ConfigDict({"deterministic": wanted}))
    assert os.environ.get("XLA_FLAGS") == after
