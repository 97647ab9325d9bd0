"""The examples run and do what they say; what they print is what is tested."""

import importlib.util
import pathlib
import re

import jax
import jax.export
import numpy as np
import pytest
from prediction import tiny_model

from jaxdet import model_file
from jaxdet.types import Images

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"


def run_main(name, monkeypatch, capsys, *arguments):
    """What `python examples/<name>.py <arguments>` prints."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr("sys.argv", [f"{name}.py", *arguments])
    module.main()
    return capsys.readouterr().out


def test_use_ops_learns_to_find_the_objects(monkeypatch, capsys):
    printed = run_main("use_ops", monkeypatch, capsys, "--steps", "150")

    losses = [float(loss) for loss in re.findall(r"step +\d+  loss (\S+)", printed)]
    overlaps = [float(iou) for iou in re.findall(r"IoU (\d\S+)$", printed, re.MULTILINE)]
    found, total = map(int, re.search(r"(\d+) of (\d+) objects found", printed).groups())
    assert len(losses) == 4 and losses[-1] < 0.1 * losses[0]
    assert found >= 0.7 * total > 0
    assert sorted(overlaps)[len(overlaps) // 2] > 0.7


def test_what_a_yolox_decides_on_is_the_same_in_an_exported_file(tmp_path, monkeypatch, capsys):
    contents, file = tiny_model.draw_contents(), tmp_path / "raw.jax"
    model_file.write(tmp_path / model_file.NAME, contents)
    arguments = [f"--model={tmp_path}", f"--out={file}"]
    assert str(file) in run_main("export_detector", monkeypatch, capsys, *arguments)

    pixels = np.random.default_rng(0).integers(0, 256, (2, *contents.canvas, 3), np.uint8)
    images = Images(pixels, np.int32([[64, 64], [40, 50]]), np.ones(2, np.float32))
    _, detector = model_file.read(tmp_path / model_file.NAME)
    wanted = jax.jit(detector.raw)(contents.variables, images)[:3]
    found = jax.export.deserialize(bytearray(file.read_bytes())).call(images.pixels, images.sizes)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_what_has_no_raw_outputs_is_said(tmp_path, monkeypatch, capsys):
    model_file.write(tmp_path / model_file.NAME, tiny_model.draw_contents("rpn"))
    with pytest.raises(SystemExit):
        run_main("export_detector", monkeypatch, capsys, f"--model={tmp_path}", "--out=x")
    assert "raw outputs want a yolox, found rpn" in capsys.readouterr().err
