import json
import pathlib
import sys
from typing import Any

import numpy as np
import pytest
from drawn_data import ListSource, draw, encode, make_example

from jaxdet.commands import schema
from jaxdet.data import sources
from jaxdet.data.decoding import UnreadableImage
from jaxdet.data.sources import own
from jaxdet.data.sources.checked import Checked
from jaxdet.data.sources.files import FileSource
from jaxdet.types import UserError

LABELME = pathlib.Path(__file__).parents[2] / "examples" / "labelme_source.py"
GOOD = """
import numpy as np
from jaxdet.types import Example
import neighbour

class Two:
    def __init__(self, names):
        self.class_names = names
    def __len__(self):
        return 2
    def __getitem__(self, index):
        boxes = np.zeros((1, 4), np.float32)
        flags = np.zeros(1, bool)
        labels = np.array([neighbour.LABEL], np.int32)
        return Example(index, b"", boxes, labels, flags, flags, np.ones(1), (9, 9))

def read(*, root, split, classes, extra: int = 3):
    return Two(classes or ("a", "b"))
"""

HEAD = "def read(root, split, classes):\n"


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes mine.py beside neighbour.py; nothing of them stays loaded."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "neighbour.py").write_text("LABEL = 1")

    def write(text):
        (tmp_path / "mine.py").write_text(text)
        for name in ("mine", "neighbour", str(tmp_path / "mine.py")):
            sys.modules.pop(name, None)
        return str(tmp_path / "mine.py")

    yield write
    write("")


def _open(name, classes=(), /, **settings):
    return sources.build(name, root="here", split="train", classes=classes, **settings)


def test_a_function_of_a_module_or_a_file_is_a_source(module):
    path = module(GOOD)
    for name in ("mine:read", f"{path}:read", "mine.py:read"):
        source = _open(name, extra=4)
        assert source.class_names == ("a", "b") and len(source) == 2
        assert source[1].id == 1 and source[0].labels.tolist() == [1]
    assert _open("mine:read", ("b", "c")).class_names == ("b", "c")
    assert sources.options("mine:read")[1] == ("extra",)
    assert not any(folder == str(pathlib.Path(path).parent) for folder in sys.path)


def test_a_file_is_loaded_once(module):
    path = module(
        GOOD + "\nimport pathlib\nwith open('count', 'a') as file:\n    file.write('x')\n"
    )
    for _ in range(3):
        _open(f"{path}:read")
    assert pathlib.Path("count").read_text() == "x"


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "no function 'read' there; it has none"),
        ("def open_it(): pass\nread = 3", "no function 'read' there; it has open_it"),
        ("def read(root, split): pass", "wants the arguments root, split, classes; no 'classes'"),
        ("import no_such_package", "ModuleNotFoundError: No module named 'no_such_package' ({}:1)"),
        ("def read(", "SyntaxError"),
        (
            "def read(root, split, classes):\n    return [1]",
            "wants to give a source (docs/data.md)",
        ),
        ("def read(root, split, classes):\n    pass", "found NoneType"),
        ("def read(root, split, classes):\n    return 1 / 0", "division by zero ({}:2)"),
        (GOOD.replace("classes or", ""), "wants to be the classes that it is called with, b, a"),
        (GOOD.replace("classes or (", "(3, "), "wants a tuple of names, found (3, "),
        (GOOD.replace("return Example", "return tuple"), "TypeError"),
        (GOOD.replace("neighbour.LABEL", "2"), "labels want whole numbers below 2, found [2]"),
        (GOOD.replace("(1, 4)", "(4,)"), "boxes wants an array (1, 4), found (4,)"),
        (
            GOOD.replace("return Example(", "return ("),
            "wants jaxdet.types.Example for each image, found tuple",
        ),
        (
            GOOD.replace("classes or", "np.array(classes) if 1 else"),
            "wants a tuple of names, found array",
        ),
        (GOOD.replace('classes or ("a", "b")', "3"), "wants a tuple of names, found 3"),
        (
            GOOD.replace('classes or ("a", "b")', "'cat'"),
            "wants a tuple of names, found 'cat'",
        ),
        (GOOD.replace('classes or ("a", "b")', "('b', 'b')"), "names a class twice: b, b"),
        (GOOD.replace("return 2", "return 1 / 0"), "ZeroDivisionError: division by zero ({}:10)"),
        (GOOD.replace("boxes, labels,", "boxes, None,"), "labels wants an array (n,), found None"),
    ],
)
def test_what_is_wrong_with_it_is_said_in_a_line(module, text, message):
    path = module(text)
    with pytest.raises(UserError) as error:
        _open("mine:read", ("b", "a"))
    assert message.format(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(labels=np.array([2])), "labels want whole numbers below 2, found [2]"),
        (dict(labels=np.array([-1])), "labels want whole numbers below 2, found [-1]"),
        (dict(labels=np.array([0.0])), "labels wants whole numbers, found float64"),
        (dict(crowd=np.array([0])), "crowd wants bool, found int64"),
        (dict(boxes=np.array([[0, 0, np.nan, 1]])), "want finite numbers, found [0.0, 0.0, nan"),
        (dict(boxes=np.array([[0, 0, 1e39, 1]])), "want finite numbers, found [0.0, 0.0, inf"),
        (dict(boxes=np.array([[-3e38, 0, 3e38, 1]])), "its sides and its area want finite numbers"),
        (dict(boxes=np.array([[0, 0, 2e19, 2e19]])), "its sides and its area want finite numbers"),
        (dict(size=None), "size wants (height, width), found None"),
        (dict(size=(4.5, 3)), "size wants (height, width), found (4.5, 3)"),
        (dict(image=None), "image wants bytes of a file or an array, found None"),
        (
            dict(image=np.zeros((60, 40, 3), np.uint8)),
            "image wants RGB pixels uint8 (40, 60, 3), found uint8 (60, 40, 3)",
        ),
    ],
)
def test_an_example_behind_the_first_is_looked_at_when_it_is_read_or_asked_for(changes, message):
    good = make_example([[1, 2, 9, 9]], id="good")
    bad = good._replace(id="bad", **changes)
    source = Checked(ListSource([good, bad], ("a", "b")), "data.source 'x:y'")
    assert source[0].id == "good"
    with pytest.raises(UserError) as error:
        source[1]
    assert str(error.value).startswith("data.source 'x:y': image 'bad': ")
    assert message in str(error.value)
    files = FileSource(("a", "b"), [good, bad], [pathlib.Path("x")] * 2)
    known = Checked(files, "data.source 'x:y'")
    if "image" in changes:
        assert len(known.annotations()) == 2
        return
    with pytest.raises(UserError) as error:
        known.annotations()
    assert message in str(error.value)


def test_what_an_image_raises_is_a_line_unless_it_says_that_it_cannot_be_read():
    class Raising(ListSource):
        def __getitem__(self, index):
            raise self.examples[index]

    errors = [KeyError("box"), ValueError("two\nlines"), OSError("gone"), UnreadableImage("cut")]
    source = Checked(Raising([*errors, UserError("mine")], ("a",)), "data.source 'x:y'")
    with pytest.raises(UserError, match=r"'x:y': image 0: KeyError: 'box' \(.*test_own_source.py:"):
        source[0]
    with pytest.raises(UserError, match="image 1: ValueError: two lines"):
        source[1]
    for place, kind in ((2, OSError), (3, UnreadableImage), (4, UserError)):
        with pytest.raises(kind, match="^(gone|cut|mine)$"):
            source[place]


def test_methods_of_a_source_that_lie_or_fail_are_said():
    good = make_example([[1, 2, 9, 9]], id="good")
    source = ListSource([good] * 3, ("a",))
    source.ids = lambda: [0, 1]
    source.annotations = lambda: {}["x"]
    found = Checked(source, "mine")
    with pytest.raises(UserError, match="one of its ids for each image, found 2 for 3"):
        found.ids()
    with pytest.raises(UserError, match="mine: annotations: KeyError: 'x'"):
        found.annotations()
    assert found.has_object(2)
    source.category_ids = (1, 2)
    with pytest.raises(UserError, match="category_ids wants one for each of 1 classes, found"):
        Checked(source, "mine")
    del source.category_ids
    source.paths = ["a.jpg"]
    with pytest.raises(UserError, match="one of its paths for each image, found 1 for 3"):
        Checked(source, "mine")


@pytest.mark.parametrize("is_package", [True, False])
def test_a_module_of_a_package_imports_from_its_package(tmp_path, is_package):
    folder = tmp_path / f"of_mine_{is_package}"
    (folder / "inner").mkdir(parents=True)
    for place in (folder, folder / "inner") if is_package else ():
        (place / "__init__.py").touch()
    (folder / "neighbour.py").write_text("LABEL = 1")
    (folder / "reader.py").write_text(GOOD.replace("import neigh", "from . import neigh"))
    name = own.locate(f"{folder.name}.reader:read", tmp_path)
    assert name == f"{folder}/reader.py:read" and len(_open(name)) == 2
    if is_package:
        above = GOOD.replace("import neigh", "from .. import neigh")
        (folder / "inner/deep.py").write_text(above)
        assert len(_open(f"{folder}/inner/deep.py:read")) == 2


def test_an_option_may_have_any_name_and_a_type_that_only_checkers_know(module):
    path = module(
        "from __future__ import annotations\n"
        + GOOD.replace("extra: int", "many: int = 2, name: X")
    )
    assert _open(f"{path}:read", name=5).class_names == ("a", "b")
    keys = schema.options(f"{path}:read")
    assert keys["name"].type is Any and keys["many"].type is int and keys["name"].default == 3


def test_a_module_or_file_that_is_not_there_is_said(module):
    with pytest.raises(UserError, match="No module named 'nowhere'"):
        _open("nowhere:read")
    with pytest.raises(UserError, match=r"there is no file .*nowhere.py"):
        _open("nowhere.py:read")
    module(GOOD)
    with pytest.raises(UserError, match="has no option 'other'; it has extra"):
        _open("mine:read", other=1)


def test_a_name_means_the_file_beside_a_config(module, tmp_path):
    path = module(GOOD)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/deep.py").touch()
    assert own.locate("mine:read", tmp_path) == f"{path}:read"
    assert own.locate("mine.py:read", tmp_path) == f"{path}:read"
    assert own.locate("sub.deep:read", tmp_path) == f"{tmp_path}/sub/deep.py:read"
    assert own.locate("package.module:read", tmp_path) == "package.module:read"
    assert own.locate("voc", tmp_path) == "voc"


def test_the_example_reads_labelme_s_files(tmp_path, caplog):
    (tmp_path / "a.jpg").write_bytes(encode(draw((40, 60), [])))
    shapes = [
        {"label": "dog", "shape_type": "rectangle", "points": [[30, 5], [10.5, 20]]},
        {"label": "cat", "shape_type": "polygon", "points": [[1, 2], [9, 3], [4, 8]]},
        {"label": "dog", "shape_type": "circle", "points": [[20, 20], [23, 24]]},
    ]
    content = {"shapes": shapes, "imagePath": "a.jpg", "imageHeight": 40, "imageWidth": 60}
    (tmp_path / "a.json").write_text(json.dumps(content))
    settings = {"root": str(tmp_path), "split": "train"}
    source = sources.build(f"{LABELME}:read", **settings)
    assert source.class_names == ("dog",)
    assert "shapes are left out" in caplog.text
    assert "1 of kind 'circle', 1 of kind 'polygon'" in caplog.text
    circles = sources.build(f"{LABELME}:read", **settings, shapes=("circle",))
    np.testing.assert_array_equal(circles[0].boxes, [[15, 15, 25, 25]])
    np.testing.assert_array_equal(source[0].boxes, [[10.5, 5, 30, 20]])
    both = sources.build(f"{LABELME}:read", **settings, shapes=("rectangle", "polygon"))
    np.testing.assert_array_equal(both[0].boxes, [[10.5, 5, 30, 20], [1, 2, 9, 8]])
    assert (both.class_names, both[0].labels.tolist()) == (("cat", "dog"), [1, 0])
    with pytest.raises(UserError, match="no json file in"):
        sources.build(f"{LABELME}:read", **settings | {"split": "val"})
