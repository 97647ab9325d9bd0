"""A part of the data that is held out, and sources of one's own, by what a config says."""

import logging
import sys

import numpy as np
import pytest
from commands.conftest import CONFIG
from data.drawn_data import write_voc

from jaxdet.commands import command_line, config_files, splits
from jaxdet.data.sources.parts import hash_of
from jaxdet.types import UserError

MODULE = """
import numpy as np
from jaxdet.types import Example

class Source:
    class_names = ("circle", "square")
    def __init__(self, count): self.count = count
    def __len__(self): return self.count
    def __getitem__(self, i):
        none = np.zeros(0, bool)
        empty = np.zeros((0, 4), np.float32), np.zeros(0, np.int32), none, none, np.zeros(0)
        return Example(f"{i}", b"", *empty, (64, 64))

def read(root, split, classes, *, count: int = 5, names=()):
    '''Reads.

    Args:
        count: images.
    '''
    return Source(count)
"""


def configure(*arguments, config=CONFIG):
    return command_line.read(["", f"--config={config}", *arguments]).config


@pytest.fixture(scope="module")
def voc(tmp_path_factory):
    root = tmp_path_factory.mktemp("voc")
    write_voc(root, {"other": ((40, 60), [])}, split="test")
    images = {f"p{n}": ((40, 60), [("circle", (1, 1, 9, 9))]) for n in range(30)}
    return ("--config.data.source=voc", f"--config.data.root={write_voc(root, images)}")


def ids(config, split):
    return splits.open_source(config, split, ("circle", "square")).ids()


@pytest.fixture
def held_out(voc):
    return configure(*voc, "--config.data.val_fraction=.3", "--config.data.eval_split=val")


def test_what_is_held_out_is_evaluated_and_the_rest_learnt(held_out):
    names = [f"p{n}" for n in range(30)]
    assert ids(held_out, "val") == [name for name in names if hash_of(name) < 0.3]
    assert ids(held_out, "train") == [name for name in names if hash_of(name) >= 0.3]
    assert ids(held_out, "test") == ["other"]  # A split of the data's own, as eval.py names it.


def test_what_is_evaluated_is_said_to_be_no_split_of_the_data_s_own(voc, held_out, caplog):
    config = configure(*voc, "--config.data.val_every=10")  # There is a list test, too.
    with caplog.at_level(logging.INFO, "jaxdet"):
        ids(config, "test")
    assert (
        "test is 3 of 30 images of train, held out by data.val_every, and no split" in caplog.text
    )
    said = "test (held out of train by data.val_every)"
    assert splits.describe_split(config.data, "test") == said
    assert splits.describe_split(held_out.data, "test") == "test"


def test_a_run_that_goes_on_holds_the_same_images_out(held_out, tmp_path):
    config_files.save(held_out, tmp_path / "config.json")
    again = command_line.read(["", f"--workdir={tmp_path}"]).config
    assert ids(again, "val") == ids(held_out, "val")
    other = command_line.read(["", f"--workdir={tmp_path}", "--config.data.val_fraction=.4"]).config
    changes = config_files.changes_of_run(other, tmp_path / "config.json")
    assert changes == ["data.val_fraction was 0.3 and is 0.4"]


def test_every_so_many_images_or_those_of_a_list_are_held_out(voc, tmp_path):
    assert ids(configure(*voc, "--config.data.val_every=10"), "test") == ["p0", "p10", "p20"]
    (tmp_path / "list.txt").write_text("p3\np4\n")
    listed = configure(*voc, f"--config.data.val_list={tmp_path}/list.txt")
    assert ids(listed, "test") == ["p3", "p4"] and len(ids(listed, "train")) == 28


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ["--config.data.val_fraction=.2", "--config.data.val_every=3"],
            "data.val_fraction and data.val_every both say what is held out",
        ),
        (
            ["--config.data.val_fraction=.2", "--config.data.eval_split=train"],
            "data.val_fraction holds images of 'train' out, which data.eval_split wants another",
        ),
        (["--config.data.val_fraction=1"], "data.val_fraction wants less than 1"),
        (["--config.data.val_every=-1"], "data.val_every wants at least 0"),
        (["--config.data.val_every=1"], "no image is learnt of 30"),
    ],
)
def test_what_cannot_be_held_out_is_said(voc, arguments, message):
    with pytest.raises(UserError) as error:
        ids(configure(*voc, *arguments), "train")
    assert message in str(error.value)


def test_generated_pictures_can_be_held_out_too(place):
    config = configure(f"--config.data.root={place.folder / 'data'}", "--config.data.val_every=4")
    assert ids(config, "test") == [0, 4, 8, 12] and len(ids(config, "train")) == 12


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A config that names a module beside it, read from another folder."""
    (tmp_path / "my_data.py").write_text(MODULE)
    (tmp_path / "mine.py").write_text(
        f"import runpy\n\ndef get_config():\n"
        f"    config = runpy.run_path({str(CONFIG)!r})['get_config']()\n"
        "    config.data.source, config.data.root = 'my_data:read', 'anywhere'\n"
        "    config.data.options = {'count': 7, 'names': ('a',)}\n    return config\n"
    )
    monkeypatch.chdir(CONFIG.parent)
    yield tmp_path
    sys.modules.pop(str(tmp_path / "my_data.py"), None)


def test_a_source_of_one_s_own_survives_a_resume_from_another_folder(mine, monkeypatch):
    config = configure(config=mine / "mine.py")
    assert config.data.source == f"{mine}/my_data.py:read"
    assert ids_of(config) == [str(n) for n in range(7)]
    config_files.save(config, mine / "config.json")
    monkeypatch.chdir("/")
    again = command_line.read(["", f"--workdir={mine}"]).config
    assert again.data.options.to_dict() == {"count": 7, "names": ("a",)}
    assert ids_of(again) == ids_of(config)
    assert not config_files.changes_of_run(again, mine / "config.json")


def test_a_source_of_one_s_own_is_named_on_the_command_line(mine, monkeypatch):
    monkeypatch.chdir(mine)
    source = "--config.data.source=my_data:read"
    config = configure(source, "--config.data.root=x", "--config.data.options.count=3")
    assert config.data.source == f"{mine}/my_data.py:read"
    assert len(ids_of(config)) == 3
    with pytest.raises(UserError, match="config.data.options.count wants int, found 'many'"):
        configure(source, "--config.data.root=x", "--config.data.options.count=many")
    with pytest.raises(UserError, match="there is no setting config.data.options.cuont"):
        configure(source, "--config.data.root=x", "--config.data.options.cuont=3")
    with pytest.raises(UserError, match="no function 'write' there; it has read"):
        configure("--config.data.source=my_data:write", "--config.data.root=x")


def test_images_of_a_source_of_one_s_own_are_held_out(mine):
    config = configure("--config.data.val_every=3", config=mine / "mine.py")
    held = splits.open_source(config, "test", ())
    np.testing.assert_array_equal([each.id for each in held], ["0", "3", "6"])


def ids_of(config):
    source = splits.open_source(config, "train", ())
    return [source[i].id for i in range(len(source))]
