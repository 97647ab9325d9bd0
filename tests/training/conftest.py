"""What the tests of training share."""

import pytest
from training import toy as toy_module


@pytest.fixture(scope="session")
def toy():
    """`toy.detector(norm=...)`, `toy.batch(step, size=...)` and `toy.variables`."""
    return toy_module
