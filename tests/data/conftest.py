"""Folders that several tests of the data read."""

import os

import pytest


@pytest.fixture(scope="session")
def bccd():
    """The folder of the blood cell photographs."""
    folder = os.environ.get("JAXDET_BCCD")
    if not folder:
        pytest.skip("JAXDET_BCCD is not set")
    return folder


@pytest.fixture(scope="session")
def shapes_root(tmp_path_factory):
    """A folder that generated shapes are kept in."""
    return str(tmp_path_factory.mktemp("shapes"))
