import json
import pathlib
import sys

import numpy as np
import pytest
from drawn_data import draw, encode

from jaxdet.data import sources
from jaxdet.data.sources import own
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


def _open(name, classes=(), **settings):
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
        (GOOD.replace("classes or (", "(3, "), "class_names wants a tuple of names, found (3, "),
        (GOOD.replace("return Example", "return tuple"), "TypeError"),
        (GOOD.replace("neighbour.LABEL", "2"), "labels want whole numbers below 2, found [2]"),
        (GOOD.replace("(1, 4)", "(4,)"), "boxes wants (1, 4), found (4,)"),
        (
            GOOD.replace("        return Example(", "        return (").replace(
                "import Ex", "import Ex"
            ),
            "wants jaxdet.types.Example for each image, found tuple",
        ),
    ],
)
def test_what_is_wrong_with_it_is_said_in_a_line(module, text, message):
    path = module(text)
    with pytest.raises(UserError) as error:
        _open("mine:read", ("b", "a"))
    assert message.format(path) in str(error.value) and "\n" not in str(error.value)


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


def test_the_example_reads_labelme_s_files(tmp_path):
    (tmp_path / "a.jpg").write_bytes(encode(draw((40, 60), [])))
    shapes = [
        {"label": "dog", "shape_type": "rectangle", "points": [[30, 5], [10.5, 20]]},
        {"label": "cat", "shape_type": "polygon", "points": [[1, 2], [9, 3], [4, 8]]},
    ]
    content = {"shapes": shapes, "imagePath": "a.jpg", "imageHeight": 40, "imageWidth": 60}
    (tmp_path / "a.json").write_text(json.dumps(content))
    settings = {"root": str(tmp_path), "split": "train"}
    source = sources.build(f"{LABELME}:read", **settings)
    assert source.class_names == ("dog",)
    np.testing.assert_array_equal(source[0].boxes, [[10.5, 5, 30, 20]])
    both = sources.build(f"{LABELME}:read", **settings, shapes=("rectangle", "polygon"))
    np.testing.assert_array_equal(both[0].boxes, [[10.5, 5, 30, 20], [1, 2, 9, 8]])
    assert (both.class_names, both[0].labels.tolist()) == (("cat", "dog"), [1, 0])
    with pytest.raises(UserError, match="no json file in"):
        sources.build(f"{LABELME}:read", **settings | {"split": "val"})
