"""Model files: what is written is read, and whatever else there is is one line."""

import json
import pickle
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from detectors import tiny
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import safe_open
from safetensors.numpy import save_file

from jaxdet import detectors, model_file
from jaxdet.types import UserError

CANVAS = (64, 96)
LOGITS = "params/head/logits0/kernel"


def draw(name="yolox", **changes):
    """A tiny detector's contents of a model file, with weights drawn at random."""
    fields = dict(class_names=("circle", "square"), canvas=CANVAS, resize=(64, 96))
    fields |= dict(max_proposals=4) if name == "fast_rcnn" else {}
    fields |= dict(settings=tiny.SETTINGS[name], category_ids=(7, 90)) | changes
    detector = detectors.build(name, num_classes=2, **fields["settings"])
    images = model_file.blank_images(1, CANVAS, fields.get("max_proposals", 0))
    shapes = jax.eval_shape(detector.init, jax.random.key(0), images)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: rng.random(leaf.shape, leaf.dtype), shapes)
    return model_file.Contents(detector=name, variables=variables, **fields)


@pytest.fixture(scope="module")
def contents():
    return draw()


@pytest.fixture(scope="module")
def saved(contents, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / model_file.NAME
    model_file.write(path, contents)
    return path


@pytest.fixture
def forge(contents, tmp_path):
    """Writes a file with other texts or leaves, whose digest fits them."""

    def forge(change=None, *, leaves=None, raw=None):
        leaves = flatten_dict(contents.variables, sep="/") if leaves is None else leaves
        fields = {"format": 1, "version": "0", **contents._asdict(), **(change or {})}
        fields = {k: v for k, v in fields.items() if v is not ... and k != "variables"}
        text = json.dumps({**fields, "sha256": model_file._digest(fields, leaves)})
        path = tmp_path / "forged.safetensors"
        save_file(leaves, path, metadata={"jaxdet": text if raw is None else raw})
        return path

    return forge


def same(one, other):
    """Whether two contents are alike, to the last bit."""
    texts = [json.dumps(c._replace(variables=None)._asdict()) for c in (one, other)]
    leaves = [flatten_dict(c.variables, sep="/") for c in (one, other)]
    return (
        texts[0] == texts[1]
        and leaves[0].keys() == leaves[1].keys()
        and all(leaves[0][k].tobytes() == leaves[1][k].tobytes() for k in leaves[0])
    )


def refused(path):
    """The line with which a file is refused, without its name."""
    with pytest.raises(UserError) as error:
        model_file.read(path)
    line = str(error.value)
    assert line.startswith(f"{path}: ") and "\n" not in line
    return line.removeprefix(f"{path}: ")


@pytest.mark.parametrize("name", detectors.DETECTORS)
def test_what_is_written_is_read_for_every_detector(name, tmp_path):
    written = draw(name)
    model_file.write(tmp_path / "a.safetensors", written)
    found, detector = model_file.read(tmp_path / "a.safetensors")

    assert same(found, written) and found.canvas == CANVAS and found.class_names[1] == "square"
    assert detector.tells_classes == (name != "rpn")
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_the_same_contents_are_the_same_bytes(saved, contents, tmp_path):
    model_file.write(tmp_path / "again.safetensors", contents)

    assert (tmp_path / "again.safetensors").read_bytes() == saved.read_bytes()


def test_others_may_read_it_as_any_new_file(saved, tmp_path):
    (tmp_path / "new").touch()

    assert saved.stat().st_mode == (tmp_path / "new").stat().st_mode


def test_settings_without_end_and_resizes_of_several_sides_are_read_as_they_were(tmp_path):
    coder = dict(tiny.SETTINGS["retinanet"], coder=dict(max_ratio=float("inf")))
    written = draw("retinanet", settings=coder, resize=((48, 64), 96), category_ids=None)
    model_file.write(tmp_path / "a.safetensors", written)
    found = model_file.read(tmp_path / "a.safetensors")[0]

    assert found.settings["coder"]["max_ratio"] == float("inf")
    assert found.resize == ((48, 64), 96) and found.category_ids is None


def test_files_of_before_resize_rules_are_read_as_rounding(forge, contents, tmp_path):
    assert model_file.read(forge({"resize_rule": ...}))[0].resize_rule == "rounded"

    floats = contents._replace(resize_rule="torchvision")
    model_file.write(tmp_path / "a.safetensors", floats)
    assert same(model_file.read(tmp_path / "a.safetensors")[0], floats)
    assert "wants one of rounded, torchvision; found 'no'" in refused(forge({"resize_rule": "no"}))


def test_a_file_whose_backbone_has_remat_is_read(forge):
    settings = tiny.SETTINGS["yolox"] | {"backbone": {"remat": False}}
    found = model_file.read(forge({"settings": settings}))[0].settings
    assert found == tiny.SETTINGS["yolox"] | {"backbone": {}, "remat": "none"}


def test_several_canvases_are_written_and_one_is_not_said(saved, contents, forge, tmp_path):
    assert model_file.read(forge({"more_canvases": ...}))[0].canvases == (CANVAS,)
    with safe_open(saved, framework="numpy") as file:
        assert "more_canvases" not in json.loads(file.metadata()["jaxdet"]), "older ones read it"

    several = contents._replace(more_canvases=((96, 64), (80, 80)))
    model_file.write(tmp_path / "a.safetensors", several)
    found = model_file.read(tmp_path / "a.safetensors")[0]
    assert same(found, several) and found.canvases == (CANVAS, (96, 64), (80, 80))


def test_another_program_finds_names_and_texts_in_the_file(saved, contents):
    with safe_open(saved, framework="numpy") as file:
        text = json.loads(file.metadata()["jaxdet"])
        kernel = file.get_tensor(LOGITS)

    assert text["detector"] == "yolox" and text["class_names"] == ["circle", "square"]
    assert text["format"] == model_file.FORMAT and text["version"] and text["sha256"]
    np.testing.assert_array_equal(kernel, contents.variables["params"]["head"]["logits0"]["kernel"])


def test_reading_needs_no_more_than_the_core(saved):
    blocked = "absl cv2 faster_coco_eval grain ml_collections orbax tensorboardX tqdm torch".split()
    # Flax itself loads absl where it is there.
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({blocked[1:]}))\n"
        f"from jaxdet import model_file; print(model_file.read({str(saved)!r})[0].class_names)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "('circle', 'square')"


def test_a_thousand_corruptions_are_refused_or_change_nothing(saved, contents, tmp_path):
    rng, whole = np.random.default_rng(0), saved.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    path, refusals = tmp_path / "corrupt.safetensors", 0

    def corrupt(kind):
        data = bytearray(whole)
        # Half of all places in the header, which is much smaller than the weights.
        end = header if rng.random() < 0.5 else len(data)
        place = int(rng.integers(end))
        if kind == "flip":
            data[place] ^= 1 << int(rng.integers(8))
        elif kind == "write":
            data[place : place + 4] = rng.bytes(4)
        elif kind == "cut":
            del data[place:]
        elif kind == "lose":
            del data[place : place + int(rng.integers(1, 9))]
        else:
            data[place:place] = rng.bytes(int(rng.integers(1, 64)))
        return bytes(data)

    for i in range(1000):
        path.write_bytes(corrupt(("flip", "write", "cut", "lose", "add")[i % 5]))
        try:
            found = model_file.read(path)[0]
        except UserError as error:
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
            refusals += 1
        else:
            assert same(found, contents)
    assert refusals > 950


@pytest.mark.parametrize(
    "data", [b"", b"\0" * 7, b"garbage" * 99, pickle.dumps({"a": 1}), b"\xff" * 64, b"PK\3\4" * 9]
)
def test_what_is_no_safetensors_is_refused(data, tmp_path):
    path = tmp_path / "other.safetensors"
    path.write_bytes(data)

    assert refused(path).startswith("cannot be read as a .safetensors file: ")


def test_a_file_that_is_missing_or_a_folder_is_refused(tmp_path):
    assert refused(tmp_path / "none.safetensors") == "there is no such model file"
    assert refused(tmp_path) == "there is no such model file"


def test_weights_of_elsewhere_are_refused(tmp_path):
    save_file({"conv1.weight": np.zeros(3)}, tmp_path / "a.safetensors", metadata={"format": "pt"})

    assert "is not a model of jaxdet" in refused(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    "change, line",
    [
        ({"format": 2, "future": 1}, "wanted format 1 of model files, found format 2"),
        ({"format": "1"}, "format wants int"),
        ({"future": 1}, "metadata: future is not known"),
        ({"canvas": ...}, "metadata: canvas is missing"),
        ({"canvas": [64]}, "metadata: canvas wants (int, int), found (64,)"),
        ({"canvas": [64, 0]}, "wanted sides of at least a pixel, found {'canvas': (64, 0)"),
        ({"more_canvases": [[64, 0]]}, "wanted sides of at least a pixel"),
        ({"more_canvases": [64, 96]}, "metadata: more_canvases wants tuple of (int, int), found"),
        ({"resize": [[], 96]}, "wanted sides of at least a pixel"),
        ({"resize": [64, 0]}, "wanted sides of at least a pixel"),
        ({"class_names": "ab"}, "metadata: class_names wants tuple of str, found 'ab'"),
        ({"class_names": []}, "class_names wants different names, found ()"),
        ({"class_names": ["a", "a"]}, "class_names wants different names"),
        ({"category_ids": [1]}, "category_ids wants one for each of 2 classes, found 1"),
        ({"detector": "yolo"}, "unknown detector 'yolo'; known: fast_rcnn"),
        ({"settings": {"block": {}}}, "no setting 'block'; did you mean 'blocks'? known: "),
        ({"settings": {"blocks": {"depth": "a"}}}, "blocks.depth wants float, found 'a'"),
        ({"settings": {"num_classes": 2}}, "num_classes"),
        ({"settings": []}, "metadata: settings wants dict"),
    ],
)
def test_texts_that_make_no_sense_are_refused(forge, change, line):
    assert line in refused(forge(change))


@pytest.mark.parametrize(
    "raw", ["", "[]", "{", "7", "[" * 100_000, "[" * 900 + "]" * 900, '{"format": null}']
)
def test_a_text_that_is_no_description_is_refused(forge, raw):
    assert refused(forge(raw=raw)).startswith("metadata: ")


def test_weights_for_another_number_of_classes_are_refused(forge):
    line = refused(forge({"class_names": ["a", "b", "c"], "category_ids": None}))

    assert line.startswith("params/head/logits0/")
    assert "the yolox of its settings with 3 classes wants (" in line and "found (" in line


@pytest.mark.parametrize(
    "change, line",
    [
        (lambda leaf: None, "found nothing"),
        (lambda leaf: leaf.astype(np.float16), "float32, found (1, 1, 32, 2) float16"),
        (lambda leaf: leaf[..., :1].copy(), "found (1, 1, 32, 1) float32"),
    ],
)
def test_a_leaf_that_does_not_fit_is_named(forge, contents, change, line):
    leaves = flatten_dict(contents.variables, sep="/")
    changed = change(leaves.pop(LOGITS))
    leaves |= {} if changed is None else {LOGITS: changed}

    assert refused(forge(leaves=leaves)).startswith(f"{LOGITS}: ")
    assert line in refused(forge(leaves=leaves))


def test_numbers_that_find_nothing_are_neither_read_nor_written(forge, contents, tmp_path):
    leaves = flatten_dict(contents.variables, sep="/")
    leaves[LOGITS] = np.full_like(leaves[LOGITS], np.nan)
    line = f"{LOGITS} wants finite float32 numbers, found nan (64 of 64)"

    assert refused(forge(leaves=leaves)) == line
    path, variables = tmp_path / "a.safetensors", unflatten_dict(leaves, sep="/")
    with pytest.raises(UserError, match=re.escape(f"a.safetensors: {line}")):
        model_file.write(path, contents._replace(variables=variables))
    assert not path.exists()


def test_a_leaf_too_many_is_named(forge, contents):
    leaves = flatten_dict(contents.variables, sep="/") | {"params/extra/bias": np.zeros(2)}

    assert "params/extra/bias: " in refused(forge(leaves=leaves))
    assert "wants nothing, found (2,) float64" in refused(forge(leaves=leaves))


def test_a_module_of_ones_own_is_taken_only_if_it_is_imported(forge, tmp_path, monkeypatch):
    (tmp_path / "my_backbone.py").write_text("raise SystemExit('it ran')")
    monkeypatch.syspath_prepend(tmp_path)
    settings = {"backbone": {"name": "my_backbone:Backbone"}}
    line = refused(forge({"settings": settings}))

    assert line.startswith("it uses the module 'my_backbone:Backbone': import that before")


def test_nothing_is_written_that_could_not_be_read(contents, tmp_path):
    path = tmp_path / "a.safetensors"
    with pytest.raises(UserError, match="with 3 classes wants"):
        model_file.write(path, contents._replace(class_names=("a", "b", "c"), category_ids=None))

    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "setting, line",
    [
        ({"max_detections": 0}, "max_detections must be at least 1, got 0"),
        ({"iou_threshold": 7}, r"iou_threshold must lie in \[0, 1\], got 7"),
        ({"max_candidates": 0}, "max_candidates 0 < max_detections 10"),
    ],
)
def test_nothing_is_written_that_could_not_predict(contents, tmp_path, setting, line):
    settings = contents.settings | {"suppress": contents.settings["suppress"] | setting}
    with pytest.raises(UserError, match=f"a.safetensors: yolox: {line}$"):
        model_file.write(tmp_path / "a.safetensors", contents._replace(settings=settings))

    assert not list(tmp_path.iterdir())
