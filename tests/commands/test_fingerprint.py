"""What run.json says of a run, and what it keeps to itself."""

import getpass
import json
import os
import shutil
import socket
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxdet.commands import fingerprint
from jaxdet.types import Example

ROOT = Path(__file__).parents[2]


class Drawn:
    """A source of drawn annotations."""

    class_names = ("circle", "square")

    def __init__(self, *examples):
        self.examples = examples

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, index):
        return self.examples[index]

    def annotations(self):
        return self.examples


def draw_example(name="a", box=(1.0, 2, 30, 40), label=0, crowd=False, size=(48, 64)):
    none = np.zeros(1, bool)
    boxes, labels = np.array([box], np.float32), np.array([label], np.int32)
    return Example(name, b"", boxes, labels, none | crowd, none, np.ones(1), size)


VARIABLES = {"params": {"layer": {"kernel": np.ones((2, 3), np.float32)}}}


@pytest.fixture
def keep(configure, tmp_path):
    """Adds a start of the tiny config to the run.json of a folder, and reads it."""
    jax.devices()  # Before a test alters the flags: XLA reads them once.

    def keep(done=0, *arguments):
        config = configure(f"--config.data.root={tmp_path / 'data'}", *arguments)
        sources = {"train": Drawn(draw_example()), "test": Drawn(draw_example("b"))}
        fingerprint.keep(tmp_path, done, config, sources, VARIABLES)
        return fingerprint.read(tmp_path / fingerprint.NAME)

    return keep


def test_a_start_says_what_its_numbers_come_from_and_nothing_of_who_and_where(
    keep, tmp_path, monkeypatch
):
    monkeypatch.setenv("WANDB_API_KEY", "do-not-tell")
    flags = os.environ["XLA_FLAGS"]
    monkeypatch.setenv("XLA_FLAGS", f"--xla_dump_to={Path.home()}/dump {flags}")
    (start,) = keep()

    assert start["step"] == 0 and start["xla_flags"] == f"--xla_dump_to=(a path) {flags}"
    assert start["versions"].keys() == {"python", *fingerprint.PACKAGES}
    assert start["devices"] == {"platform": "cpu", "kinds": ["cpu"], "count": 8, "processes": 1}
    assert start["data"]["train"]["images"] == 1
    assert start["data"]["train"] != start["data"]["test"]
    text = (tmp_path / "run.json").read_text()
    secrets = [str(tmp_path), str(ROOT), str(Path.home()), "do-not-tell"]
    secrets += [f'"{name}"' for name in (socket.gethostname(), getpass.getuser())]
    assert not [secret for secret in secrets if secret in text]


def test_a_resume_adds_a_start_and_what_was_given_up_leaves(keep):
    keep()
    assert [start["step"] for start in keep(16)] == [0, 16]
    assert [start["step"] for start in keep(16)] == [0, 16], "the one before was killed too soon"
    assert [start["step"] for start in keep(8)] == [0, 8], "16 was damaged, and is done again"
    assert [start["step"] for start in keep()] == [0], "the folder has a new run"


def test_the_hash_of_a_config_changes_with_what_decides_numbers(keep):
    def of(*arguments):
        return keep(0, *arguments)[0]["config"]

    same = of()
    for free in ("data.num_threads=3", "log_every=5", "report=True", "init_from=there.pth"):
        assert of(f"--config.{free}") == same, free
    for decides in ("seed=1", "optimizer.learning_rate=0.03", "model.roi.head.hidden=8"):
        assert of(f"--config.{decides}") != same, decides
    # Where the best checkpoint comes back it matters when there are any.
    assert of("--config.eval_every=6") != same
    plain = "--config.reload_best_at_milestones=False"
    assert of(plain, "--config.eval_every=6") == of(plain)


def test_settings_without_paths_are_the_same_wherever_things_lie(configure, tmp_path):
    found = []
    for folder in ("a", "b"):
        own = tmp_path / folder / "own.py"
        own.parent.mkdir()
        own.write_text("def read(root, split, classes):\n    pass\n")
        config = configure(f"--config.data.source={own}:read", f"--config.data.root={own.parent}")
        found.append(fingerprint.without_paths(config.to_dict()))
    assert found[0] == found[1] and found[0]["data.source"] == "own.py:read"
    assert "data.root" not in found[0] and "data.classes" in found[0]


def test_the_hash_of_data_changes_with_every_thing_that_is_learnt(tmp_path, monkeypatch):
    def of(*examples):
        return fingerprint.describe_data(Drawn(*examples))["annotations"]

    first, second = draw_example(), draw_example("b")
    hashes = [
        of(first, second),
        of(second, first),
        of(first),
        of(),
        of(draw_example("c")),
        of(draw_example("\udcff")),  # A file whose name is no UTF-8.
        of(draw_example(box=(1.0, 2, 30, 41))),
        of(draw_example(label=1)),
        of(draw_example(crowd=True)),
        of(draw_example(size=(64, 48))),
    ]
    assert len(set(hashes)) == len(hashes)
    assert of(draw_example(), second) == hashes[0]

    file = tmp_path / "proposals.npz"
    described = []
    for content in (b"one", b"two"):
        file.write_bytes(content)
        described.append(fingerprint.describe_data(Drawn(first), str(file))["proposals"])
    assert described[0] != described[1]

    blind = Drawn(first, second)  # A source that tells nothing before its images are read.
    monkeypatch.delattr(Drawn, "annotations")
    assert fingerprint.describe_data(blind) == {"images": 2, "annotations": None}


def test_the_hash_of_variables_changes_with_a_bit_a_name_and_a_type():
    kernel = VARIABLES["params"]["layer"]["kernel"]
    hashes = [
        fingerprint.hash_variables({"params": {name: {"kernel": leaf}}})
        for name, leaf in (
            ("layer", kernel),
            ("other", kernel),
            ("layer", kernel.view(np.int32)),
            ("layer", kernel.reshape(3, 2)),
            ("layer", np.nextafter(kernel, 2)),
        )
    ]
    assert len(set(hashes)) == len(hashes) and fingerprint.hash_variables(VARIABLES) == hashes[0]


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_code_in_a_checkout_has_a_commit_and_says_when_it_was_changed(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    package = tmp_path / "repository" / "package"
    package.mkdir(parents=True)
    (package / "code.py").write_text("one = 1\n")
    copied = fingerprint.describe_code(package)
    assert (copied["commit"], copied["changed"]) == (None, None)

    def git(*arguments):
        who = ["-c", "user.name=n", "-c", "user.email=e"]
        subprocess.run(["git", *who, *arguments], cwd=package.parent, check=True)

    git("init", "-q")
    assert fingerprint.describe_code(package)["commit"] is None, "there is none yet"
    git("add", ".")
    git("commit", "-qm", "First")
    clean = fingerprint.describe_code(package)
    assert len(clean["commit"]) == 40 and clean["changed"] is False
    assert clean["source"] == copied["source"]
    (package / "code.py").write_text("one = 2\n")
    changed = fingerprint.describe_code(package)
    assert changed["changed"] is True and changed["commit"] == clean["commit"]
    assert changed["source"] != clean["source"]


@pytest.mark.parametrize("text", ["", "[]", '{"starts": 1', '{"begun": 3}', '{"starts": [3]}'])
def test_a_file_that_says_something_else_has_no_start(text, tmp_path):
    (tmp_path / "run.json").write_text(text)
    assert fingerprint.read(tmp_path / "run.json") == []
    assert fingerprint.read(tmp_path / "no.json") == []


def test_a_run_leaves_its_fingerprint(trained):
    (start,) = json.loads((trained.workdir / "run.json").read_text())["starts"]
    assert start["step"] == 0 and start["devices"]["count"] == 1
    # Shapes are drawn as their settings say; there are no annotations to look at.
    assert start["data"] == {
        "train": {"images": 16, "annotations": None},
        "test": {"images": 8, "annotations": None},
    }
