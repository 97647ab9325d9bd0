"""The examples run and do what they say; what they print is what is tested."""

import importlib.util
import pathlib
import re

import jax
import jax.export
import numpy as np
import optax
import pytest

from jaxdet.commands import command_line, config_files, opening
from jaxdet.training import state
from jaxdet.training.checkpoint import Checkpoints
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


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The working folder of a tiny YOLOX, its detector, its variables and two images."""
    workdir = tmp_path_factory.mktemp("exported")
    config_file = pathlib.Path(__file__).parent / "training" / "tiny_yolox_config.py"
    config = command_line.read(["", f"--config={config_file}"]).config
    config_files.save(config, workdir / config_files.SAVED_NAME)
    run = opening.open_run(config)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: rng.random(leaf.shape, np.float32) / 8, run.variables)
    checkpoints = Checkpoints(workdir / "checkpoints", metric="AP")
    checkpoints.save(state.create(variables, optax.sgd(0.0), ema=True), {"AP": 0.5})
    checkpoints.close()
    pixels = rng.integers(0, 256, (2, *config.data.canvas, 3), np.uint8)
    images = Images(pixels, np.int32([[64, 64], [40, 50]]), np.ones(2, np.float32))
    return workdir, run.detector, variables, images


@pytest.mark.parametrize("raw", [False, True])
def test_an_exported_yolox_gives_what_it_gives_here(saved, monkeypatch, capsys, raw):
    workdir, detector, variables, images = saved
    file = workdir / "program"
    options = ["--raw"] if raw else []
    arguments = [f"--workdir={workdir}", f"--out={file}", *options]
    assert str(file) in run_main("export_detector", monkeypatch, capsys, *arguments)

    program = jax.export.deserialize(file.read_bytes())
    found = program.call(images.pixels, images.sizes)
    if raw:
        wanted = jax.jit(detector.raw)(variables, images)[:3]
    else:
        wanted = jax.jit(detector.predict)(variables, images)
        assert wanted.valid.any()
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_what_cannot_be_exported_is_said(saved, monkeypatch, capsys):
    workdir = saved[0]
    arguments = [f"--workdir={workdir / 'none'}", "--out=x"]
    with pytest.raises(SystemExit):
        run_main("export_detector", monkeypatch, capsys, *arguments)
    assert "has no config.json" in capsys.readouterr().err
    config = command_line.read(["", f"--workdir={workdir}"]).config
    for detector, options, message in (
        ("faster_rcnn", [], "faster_rcnn wants a --batch_size"),
        ("rpn", ["--raw"], "--raw wants a run of yolox, found rpn"),
    ):
        other = workdir / detector
        other.mkdir()
        config.detector, config.model = detector, {}
        config_files.save(config, other / config_files.SAVED_NAME)
        with pytest.raises(SystemExit):
            run_main(
                "export_detector", monkeypatch, capsys, f"--workdir={other}", "--out=x", *options
            )
        assert message in capsys.readouterr().err
