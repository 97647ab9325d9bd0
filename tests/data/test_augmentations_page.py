"""The page on compositions shows what the functions do, and names their settings as they are."""

import importlib.util
import pathlib
import re

import cv2
import numpy as np
import pytest

from jaxdet.data.mosaic import Composition
from jaxdet.data.transforms import Augmentation

DOCS = pathlib.Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "augmentations.md").read_text()
PHOTOGRAPHS = {"augmentations_batch.jpg", "augmentations_cells.jpg"}


@pytest.fixture
def script():
    path = DOCS / "draw_augmentations.py"
    spec = importlib.util.spec_from_file_location("draw_augmentations", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _assert_drawn(folder, names):
    assert {path.name for path in folder.iterdir()} == names
    for name in names:
        drawn, kept = (cv2.imread(str(place / name)) for place in (folder, DOCS / "images"))
        assert drawn.shape == kept.shape
        # Letters and JPEGs differ with OpenCV's version, what is drawn does not.
        assert np.abs(drawn.astype(int) - kept).mean() < 4, name


def test_the_pictures_of_the_page_are_those_that_the_script_draws(script, tmp_path, monkeypatch):
    monkeypatch.delenv("JAXDET_BCCD", raising=False)
    script.draw_all(tmp_path)
    kept = {path.name: path for path in (DOCS / "images").glob("augmentations_*")}
    _assert_drawn(tmp_path, set(kept) - PHOTOGRAPHS)
    assert set(re.findall(r"images/(augmentations_\w+\.jpg)", PAGE)) == set(kept) > PHOTOGRAPHS
    assert all(path.stat().st_size < 150_000 for path in kept.values())


def test_the_photographs_of_the_page_are_those_that_the_script_draws(script, tmp_path, bccd):
    script.draw_all(tmp_path)
    _assert_drawn(tmp_path, {path.name for path in (DOCS / "images").glob("augmentations_*")})


def test_the_page_names_every_setting_with_its_default():
    rows = re.findall(r"^\| `data\.(\w+)` \| (.*?) \|", PAGE, re.MULTILINE)
    plain = {name: Augmentation._field_defaults[name] for name in ("hsv", "min_side")}
    defaults = {**Composition._field_defaults, **plain}
    assert dict(rows) == {name: str(value) for name, value in defaults.items()}
