"""YOLOX through train.py: what a config's final steps switch, and its mistakes."""

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxdet import commands, configuration, interop
from jaxdet.data import pipeline
from jaxdet.types import UserError


class NoImages(list):
    class_names = ("circle", "square")


CONFIG = Path(__file__).parent / "training" / "tiny_yolox_config.py"


def configure(*arguments):
    return configuration.read_command_line(["", f"--config={CONFIG}", *arguments]).config


@pytest.mark.parametrize("final_steps", [4, 0, 8])
def test_mosaics_end_and_the_rate_is_lowest_at_one_step(monkeypatch, final_steps):
    config = configure(f"--config.final_steps={final_steps}", "--config.optimizer.warmup_steps=0")
    given = {}
    monkeypatch.setattr(pipeline, "train_batches", lambda source, **k: given.update(k))
    commands.train_batches(config, NoImages(), 0)
    _, schedule = commands.make_optimizer(config)
    assert given["final_start"] == 8 - final_steps
    rates = [float(schedule(step)) for step in range(9)]
    lowest = config.optimizer.learning_rate / 2 * config.optimizer.final_ratio
    reached = [step for step in range(9) if rates[step] == pytest.approx(lowest, abs=1e-9)]
    assert reached[0] == 8 - final_steps


def test_a_run_may_start_from_yoloxs_weights_of_other_classes(tmp_path):
    config = configure(f"--config.init_from={tmp_path / 'yolox.npz'}")
    rng = np.random.default_rng(0)

    def weights(num_classes):
        detector = commands.build_detector(config, num_classes=num_classes)
        shapes = commands.abstract_variables(config, detector)
        return detector, jax.tree.map(lambda leaf: rng.random(leaf.shape, "f4"), shapes)

    _, theirs = weights(80)
    np.savez(tmp_path / "yolox.npz", **interop.to_torch(theirs, names="yolox", bgr=False))
    detector, _ = weights(2)
    variables, origin = commands.first_variables(config, detector)
    assert "6 drawn at random, 0 unused" in origin
    head, wanted = variables["params"]["head"], theirs["params"]["head"]
    np.testing.assert_array_equal(head["boxes1"]["kernel"], wanted["boxes1"]["kernel"])
    assert head["logits1"]["kernel"].shape[-1] == 2
    # Files of YOLOX read BGR, jaxdet's images are RGB.
    stem = variables["params"]["backbone"]["stem"]["conv"]["kernel"]
    turned = theirs["params"]["backbone"]["stem"]["conv"]["kernel"].reshape(3, 3, 4, 3, -1)
    np.testing.assert_array_equal(stem, turned[:, :, :, ::-1].reshape(stem.shape))


@pytest.mark.parametrize(
    "edit, message",
    [
        (
            "del config.multiscale_heights; config.multiscale_heights = 640",
            "multiscale_heights wants .* of 32, found 640",
        ),
        ("config.multiscale_heights = ('64',)", r"multiscale_heights wants .*found \('64',\)"),
        ("config.multiscale_heights = (48,)", r"multiscale_heights wants .*found \(48,\)"),
        (
            "del config.multiscale_every; config.multiscale_every = 2.5",
            "multiscale_every wants a whole number, found 2.5",
        ),
        ("config.final_steps = 9", "final_steps wants at most num_steps 8, found 9"),
        ("config.final_steps = True", "final_steps wants a whole number, found True"),
        ("config.ema_decay = 1.0", "ema_decay wants less than 1, found 1.0"),
        ("config.ema_decay = float('nan')", "ema_decay wants at least 0, found nan"),
        ("config.optimizer.warmup_steps = 5", "at most config.num_steps, 8, found 5 [+] 4"),
        ("config.data.mosaic = 2.0", "data.mosaic wants"),
        ("config.data.mosaic = 0.0", "data.mixup wants data.mosaic above 0"),
        (
            "config.data.affine_boxes = 'elipse'",
            "data.affine_boxes wants one of corners, ellipse; found",
        ),
        ("config.data.hsv = (0.1, 0.2)", "data.hsv wants"),
        ("config.data.canvas = (65, 64)", "height and width must be even; found 65 x 64"),
        ("config.model.box_loss = 'diou'", "config.model: box_loss must be one of iou, giou"),
    ],
)
def test_a_mistake_is_named_before_there_is_any_data(tmp_path, edit, message):
    shutil.copy(CONFIG.with_name("tiny_config.py"), tmp_path)
    file = tmp_path / "edited.py"
    file.write_text(
        CONFIG.read_text().replace("    return config", f"    {edit}\n    return config")
    )
    arguments = ["", f"--config={file}", f"--config.batch_size={jax.device_count()}"]
    with pytest.raises(UserError, match=message):
        commands.check(configuration.read_command_line(arguments).config)


def test_a_config_may_build_on_another_one_of_its_folder(tmp_path):
    """Each folder's own, whatever was loaded before."""
    for seed in (1, 2):
        folder = tmp_path / str(seed)
        folder.mkdir()
        (folder / "tiny_config.py").write_text(
            CONFIG.with_name("tiny_config.py").read_text().replace("seed = 0", f"seed = {seed}")
        )
        (folder / "derived.py").write_text(CONFIG.read_text())
        config = configuration.read_command_line(["", f"--config={folder / 'derived.py'}"]).config
        assert config.seed == seed and config.detector == "yolox"
    (folder / "tiny_config.py").write_text("\n\n(\n")
    with pytest.raises(UserError, match=r"tiny_config.py:3: SyntaxError"):
        configuration.read_command_line(["", f"--config={folder / 'derived.py'}"])
