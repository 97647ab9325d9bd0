import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import onnx
import pytest
from detectors import tiny
from prediction import tiny_model
from prediction.tiny_model import CANVAS, draw_photograph

import jaxdet
from jaxdet import model_file
from jaxdet.commands import export

HERE = pathlib.Path(__file__).parent
CHANGES = {"yolox": dict(blocks=dict(norm="batch"))}  # A third of the nodes of group norm.
# As it is, enlarged to a side of 56.5, and made less than half.
SIZES = [CANVAS, (53, 90), (192, 288)]


def write_model(name, folder, rule="rounded", **changes):
    """A model file of a tiny detector that finds something everywhere."""
    settings = tiny.merge(tiny.SETTINGS[name], CHANGES.get(name, {}) | changes)
    path = folder / "model.safetensors"
    contents = tiny_model.draw_contents(name, settings=settings, resize_rule=rule)
    if name == "faster_rcnn":  # Milder weights: its stages make much of a last bit.
        detector, batch = tiny.build(name), tiny.draw_batch(name, 1)
        variables = tiny.drawn_variables(detector, batch)
        contents = contents._replace(variables=jax.tree.map(np.asarray, variables))
    model_file.write(path, contents)
    return path


def run_elsewhere(script, program, images, folder, environment=None):
    """What a process of its own gives, without jaxdet: a list of Detections' fields, and names."""
    np.savez(folder / "in.npz", **images)
    command = [sys.executable, HERE / script, program, folder / "in.npz", folder / "out.npz"]
    subprocess.run(command, check=True, env=environment, cwd=folder)
    with np.load(folder / "out.npz") as out:
        found = {name: [out[f"{name}/{place}"] for place in range(4)] for name in images}
        return found, tuple(out["names"])


def assert_same(found, wanted, *, boxes):
    """Outputs of one image, and what `jaxdet.load` finds there."""
    box, score, label, valid = found
    assert len(wanted) >= 2 and valid.sum() == len(wanted) and not valid[len(wanted) :].any()
    np.testing.assert_array_equal(label[valid], wanted.labels)
    np.testing.assert_allclose(score[valid], wanted.scores, atol=1e-4)
    np.testing.assert_allclose(box[valid], wanted.boxes, atol=boxes)


@pytest.mark.parametrize(
    "name, rule, batch, margin",
    [
        ("rpn", "rounded", 1, 0.01),
        ("retinanet", "torchvision", 2, 0.01),
        ("yolox", "rounded", 1, 0.05),
        ("faster_rcnn", "rounded", "dynamic", 0.01),
    ],
)
def test_onnx_finds_what_jaxdet_finds(name, rule, batch, margin, tmp_path):
    model = write_model(name, tmp_path, rule)
    many = {"dynamic": 3}.get(batch, batch)
    images = {
        str(i): np.stack([draw_photograph(size, j) for j in range(many)])
        for i, size in enumerate(SIZES)
    }

    export.export(str(model), "onnx", None, batch=batch)
    found, names = run_elsewhere("run_onnx.py", tmp_path / "model.onnx", images, tmp_path)

    predictor = jaxdet.load(model, cache=False)
    assert names == predictor.class_names
    about = _about(onnx.load(tmp_path / "model.onnx"))
    ids = predictor.category_ids and list(predictor.category_ids)
    assert (about["category_ids"], about["resize_rule"]) == (ids, rule)
    for key, pixels in images.items():
        for row, wanted in enumerate(predictor(list(pixels))):
            assert_same([output[row] for output in found[key]], wanted, boxes=margin)


def _about(model):
    return {each.key: json.loads(each.value) for each in model.metadata_props}


def test_stablehlo_finds_what_jaxdet_finds(tmp_path, one_device):
    model = write_model("rpn", tmp_path)
    images = {"all": np.stack([draw_photograph(SIZES[2], seed) for seed in range(3)])}

    export.export(str(model), "stablehlo", None, batch="dynamic")
    program = tmp_path / "model.stablehlo"
    found, names = run_elsewhere("run_stablehlo.py", program, images, tmp_path, one_device)

    assert names == ("object",)
    for row, wanted in enumerate(jaxdet.load(model, cache=False)(list(images["all"]))):
        assert_same([output[row] for output in found["all"]], wanted, boxes=0.01)


def test_a_file_says_what_it_takes_and_gives(tmp_path, capsys):
    model = write_model("rpn", tmp_path, dtype="bfloat16")
    out = tmp_path / "new" / "file.onnx"

    with pytest.raises(SystemExit) as ending:
        export.main(["export", str(model), "--to=onnx", "--size=30x40", f"--out={out}"])

    assert ending.value.code == 0
    assert (
        "takes pixels: 1 x 30 x 40 x 3, uint8, RGB; gives boxes, scores" in capsys.readouterr().out
    )
    written = onnx.load(out)
    onnx.checker.check_model(written, full_check=True)
    about = _about(written)
    assert about["class_names"] == ["object"] and about["category_ids"] is None
    assert about["canvas"] == list(CANVAS) and about["detector"] == "rpn"
    sides = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*written.graph.input, *written.graph.output)
    }
    assert sides == {
        "pixels": [1, 30, 40, 3],
        "boxes": [1, 30, 4],
        "scores": [1, 30],
        "labels": [1, 30],
        "valid": [1, 30],
    }
    used = {tensor.data_type for tensor in written.graph.initializer}
    assert onnx.TensorProto.BFLOAT16 not in used


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--to=tflite"], "invalid choice: 'tflite'"),
        (["--to=onnx", "--batch=0"], "--batch wants a number from 1 to 9999 or dynamic, found '0'"),
        (["--to=onnx", "--size=48"], "--size wants HEIGHTxWIDTH in pixels up to 16384"),
        (["--to=onnx", "--size=0x9"], "found '0x9'"),
        (["--to=onnx"], "none.safetensors: there is no such model file"),
    ],
)
def test_mistakes_are_said_in_a_line(flags, message, capsys):
    with pytest.raises(SystemExit) as ending:
        export.main(["export", "none.safetensors", *flags])

    (line,) = capsys.readouterr().err.splitlines()
    assert ending.value.code == 1 and message in line


@pytest.mark.parametrize(
    "to, message",
    [("onnx", 'onnx: pip install "jaxdet[onnx]"'), ("stablehlo", 'pip install "jaxdet[export]"')],
)
def test_what_is_not_installed_is_said(to, message, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    with pytest.raises(jaxdet.UserError) as error:
        export.export("none.safetensors", to, None)
    assert message in str(error.value)


def test_a_detector_that_wants_proposals_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    model_file.write(path, tiny_model.draw_contents("fast_rcnn", max_proposals=tiny.GIVEN))

    with pytest.raises(jaxdet.UserError, match="fast_rcnn wants proposals with each image"):
        export.export(str(path), "onnx", None)


def test_a_model_is_not_written_over(tmp_path):
    path = tmp_path / "model.safetensors"
    model_file.write(path, tiny_model.draw_contents())
    before = path.read_bytes()
    with pytest.raises(jaxdet.UserError, match="--out wants another name than the model"):
        export.export(str(path), "onnx", path)
    assert path.read_bytes() == before
