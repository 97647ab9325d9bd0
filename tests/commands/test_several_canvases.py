"""Several canvases, from a config to what is learnt and found on them."""

import jax
import numpy as np
import pytest
from commands.conftest import CONFIG
from data.drawn_data import write_voc

from jaxdet import detectors, visualize
from jaxdet.commands import command_line, fed_images, finding, fitting, opening, splits
from jaxdet.data import inventory, sources
from jaxdet.types import Detections, Detector, UserError

NOTHING = Detector(*[lambda: None] * 3)
LYING, UPRIGHT = (32, 64), (64, 32)
NAMES = ("circle", "square")


class NoSizes(list):
    class_names = NAMES


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Nine images, every third upright, with a circle each; the splits are the same."""
    root = tmp_path_factory.mktemp("voc")
    images = {
        f"p{i}": ((48, 24) if i % 3 == 0 else (24, 48), [("circle", (3, 3, 12 + i, 20))])
        for i in range(9)
    }
    write_voc(root, images, split="val")
    return write_voc(root, images)


@pytest.fixture
def config(root):
    settings = {
        "source": "voc",
        "root": root,
        "eval_split": "val",
        "canvas": LYING,
        "more_canvases": f"({UPRIGHT},)",
        "resize": (32, 64),
    }
    lines = [f"--config.data.{key}={value}" for key, value in settings.items()]
    more = ["--config.batch_size=2", "--config.eval_batch_size=2", "--config.num_pictures=9"]
    return command_line.read(["", f"--config={CONFIG}", *lines, *more]).config


@pytest.fixture
def run(config):
    return opening.open_training_data(opening.Run(config, NAMES, NOTHING, None))


def test_what_is_shown_of_a_step_is_its_batch_on_its_canvas(run):
    fed = fed_images.gather(run, 0, 18)
    with_canvas = {LYING: set(), UPRIGHT: set()}
    for step in range(9):
        pair = fed[2 * step : 2 * step + 2]
        canvas, other = (each.batch.images.pixels.shape[1:3] for each in pair)
        assert canvas == other
        with_canvas[canvas] |= {each.name for each in pair}
    assert with_canvas[UPRIGHT] == {"p0", "p3", "p6"} and len(with_canvas[LYING]) == 6
    loader = opening.train_batches(run.config, run.source, 0)
    batch = next(loader)
    loader.close()
    rows = jax.tree.map(lambda *rows: np.concatenate(rows), *[each.batch for each in fed[:2]])
    jax.tree.map(np.testing.assert_array_equal, rows, batch)
    sheet = visualize.grid([fed_images.draw(each, NAMES) for each in fed[:8]], 3)
    assert sheet.ndim == 3, "pictures of both kinds stand on one sheet"
    lines = inventory.table({"train": run.to_learn}, NAMES).splitlines()
    assert ["on", "canvas", "64", "x", "32", "3"] in [line.split() for line in lines]


def test_what_is_found_comes_back_in_the_order_of_the_source(config):
    source = splits.open_source(config, "val", NAMES)
    shapes = []

    def predict(variables, images):
        """Finds the whole image."""
        shapes.append(images.pixels.shape[1:3])
        height, width = images.sizes[:, None].T.astype(np.float32)
        boxes = np.stack([0 * width, 0 * height, width, height], axis=-1).reshape(-1, 1, 4)
        scores = np.ones(boxes.shape[:2], np.float32)
        return Detections(boxes, scores, np.zeros(scores.shape, int), scores > 0)

    pairs = finding.detect(config, source, predict, {}, 0)
    assert [example.id for example, _ in pairs] == [f"p{i}" for i in range(9)]
    for example, found in pairs:
        np.testing.assert_allclose(found.boxes, [[0, 0, *example.size[::-1]]], rtol=1e-6)
    assert sorted(shapes) == [LYING] * 3 + [UPRIGHT] * 2
    pictures = finding.draw(config, NOTHING, source, predict, {})
    assert [name for name, _ in pictures] == [f"p{i}" for i in range(9)]


def test_a_detector_meets_all_canvases_before_the_run(config, monkeypatch):
    met = []

    def predict(variables, images):
        met.append(images.pixels.shape)
        return images.scales

    detector = Detector(lambda key, images: {}, lambda *_, **__: {}, predict)
    monkeypatch.setattr(detectors, "build", lambda *_, **__: detector)
    opening.open_run(config)
    assert met == [(1, *LYING, 3), (1, *UPRIGHT, 3)]


def test_anchors_are_measured_on_the_canvas_of_each_image(config, run):
    """An image that is turned has the overlaps of the other, where anchors are square."""
    config.model.rpn.anchors.ratios = (1.0,)
    boxes = np.float32([[2, 3, 14, 44]])
    (lying,) = run.source.annotations()[1:2]
    lying = lying._replace(boxes=boxes[:, [1, 0, 3, 2]], area=np.array([492.0]))
    upright = lying._replace(boxes=boxes, size=lying.size[::-1])
    settings = {key: config.data[key] for key in inventory.KEYS}
    judged = inventory.judge([lying, upright], **settings)
    fit = fitting.measure(config, {"train": judged})
    one, other = fit.overlaps["train"]
    assert one == pytest.approx(other) and one > 0.1


def test_what_does_not_go_with_several_canvases_is_refused(config, monkeypatch):
    config.multiscale_heights = (32, 64)
    with pytest.raises(UserError, match="^config.multiscale_heights wants one canvas, as a "):
        opening.open_run(config)
    # Before the first step: an evaluation would find it much later.
    monkeypatch.setattr(sources, "build", lambda *_, **__: NoSizes("ab"))
    with pytest.raises(UserError, match="^data.more_canvases wants a source that knows"):
        splits.open_source(config, "val", NAMES)
