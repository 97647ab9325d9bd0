"""What a training is fed, as `jaxdet browse` shows it."""

import copy
import re

import cv2
import jax
import numpy as np
import pytest

from jaxdet import visualize
from jaxdet.commands import browse, command_line, fed_images, opening
from jaxdet.commands.fed_images import Fed
from jaxdet.commands.opening import Run
from jaxdet.detectors.assigned import Assigned, Level
from jaxdet.training.multiscale import draw_height, resize_batch
from jaxdet.types import Batch, Detector, Images, UserError

NOTHING = Detector(*[lambda: None] * 3)
YOLOX = "tests/training/tiny_yolox_config.py"


@pytest.fixture(scope="module")
def run(place):
    """What YOLOX's tiny config learns: mosaics, and a height that is drawn; no detector is made."""
    config = command_line.read(
        ["", f"--config={YOLOX}", f"--config.data.root={place.folder / 'data'}"]
    ).config
    names = tuple(config.data.classes)
    return opening.open_training_data(Run(config, names, NOTHING, None))


def test_the_images_are_those_of_the_run(run):
    size, step = run.config.batch_size, 1
    fed = fed_images.gather(run, step, size + 2)

    assert [each.step for each in fed] == [step] * size + [step + 1] * 2
    loader = opening.train_batches(run.config, run.source, step)
    for first in (0, size):
        batch = next(loader)
        heights = {"heights": run.config.multiscale_heights, "every": run.config.multiscale_every}
        height = draw_height(run.config.seed, step + first // size, **heights)
        batch = jax.jit(resize_batch, static_argnums=1)(batch, height)
        rows = jax.tree.map(
            lambda *rows: np.concatenate(rows), *[f.batch for f in fed[first:][:size]]
        )
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[: len(a)]), rows, batch)
    loader.close()
    # Of the mosaics before the final steps the first image has the name.
    order = [run.source[i].id for i in range(len(run.source))]
    assert {each.name for each in fed} <= {str(name) for name in order}


def test_the_images_at_places_of_the_run_have_their_names(run):
    size = run.config.batch_size
    fed = fed_images.gather(run, 1, 3)
    assert fed_images.names(run, [size, size + 1, size + 2]) == [each.name for each in fed]


def test_the_batch_of_a_step_is_drawn_as_it_was_fed(run):
    threads = run.config.data.num_threads = 3
    sheet = fed_images.draw_batch(run, 1)
    assert run.config.data.num_threads == threads, "the run goes on with its own"
    size = run.config.batch_size
    fed = fed_images.gather(run._replace(config=copy.deepcopy(run.config)), 1, size)
    pictures = [fed_images.draw(each, run.class_names) for each in fed]
    columns = next(n for n in range(1, 99) if n * n >= size)
    np.testing.assert_array_equal(sheet, visualize.grid(pictures, columns))


@pytest.fixture
def fed():
    """A dark image of 60 x 80 on a canvas of 64 x 96: two objects, a region and two maps."""
    pixels = np.full((1, 64, 96, 3), 40, np.uint8)
    images = Images(pixels, np.array([[60, 80]], np.int32), np.ones(1, np.float32))
    boxes = np.float32([[[8, 8, 24, 24], [40, 30, 60, 50], [64, 0, 80, 20], [0, 0, 0, 0]]])
    valid = np.array([[True, True, False, False]])
    crowd = np.array([[False, False, True, False]])
    labels = np.array([[0, 1, 0, 0]], np.int32)
    batch = Batch(images, boxes, labels, valid, crowd, np.zeros(1, np.uint32))
    anchors = np.float32([[8, 8, 24, 24], [12, 8, 28, 24], [40, 0, 56, 16], [0, 0, 64, 64]])
    assigned = Assigned(
        boxes=anchors,
        labels=np.array([1, 1, 0, -1]),
        index=np.array([0, 0, 0, 0]),
        levels=(Level(8, (8, 12), 3), Level(32, (2, 3), 1)),
    )
    return Fed("cells-7", 3, batch, assigned)


def test_numbers_are_as_counted_by_hand(fed):
    plain = fed._replace(assigned=None)
    assert list(fed_images.describe([plain])) == ["objects: 2, ignored regions: 1"]
    assert fed_images.counts_of_objects(fed).tolist() == [2, 0]
    assert list(fed_images.describe([fed, fed])) == [
        "objects: 4, ignored regions: 2",
        "anchors: 8, positive 4, ignored 2",
        "anchors an object: median 1, least 0; objects without: 2",
        "stride   8:    8 x 12 cells,      3; positive      4",
        "stride  32:     2 x 3 cells,      1; positive      0",
    ]


def test_padding_regions_and_anchors_are_drawn(fed):
    plain = fed_images.draw(fed._replace(assigned=None), ("red", "white"))
    factor = fed_images.SIDE / 96

    beside = plain[: 64 * 5, 82 * 5 : 95 * 5].reshape(-1, 3)
    assert factor == 5 and {(40, 40, 40)} <= set(map(tuple, beside.tolist()))
    inside = plain[100 : 60 * 5, 25 * 5 : 39 * 5]
    assert (inside == 40).all(), "no hatch where the image is"
    share = (beside == visualize.INK[0]).all(axis=1).mean()
    assert share > 0.9, "a dark image and dark lines"
    bright = plain.copy()
    fed.batch.images.pixels[:] = 200
    bright = fed_images.draw(fed._replace(assigned=None), ("red", "white"))
    hatched = (bright[40:300, 82 * 5 : 95 * 5] == visualize.INK[0]).all(axis=2).mean()
    assert 0.1 < hatched < 0.2, "2 of 14 pixels"
    dashes = (bright[99:101, 64 * 5 : 79 * 5] == 255).all(axis=2).mean()
    assert 0.3 < dashes < 0.7, "half of the region's lower side"

    shown = fed_images.draw(fed, ("red", "white"))
    factor = fed_images.ASSIGNED_SIDE / 96
    for x in (16, 20):  # The middles of both positives, in the colour of the first level.
        assert tuple(shown[round(16 * factor), round(x * factor)]) == visualize.PALETTE[0]
    assert tuple(shown[round(8 * factor), round(48 * factor)]) == (200, 200, 200)
    sheet = fed_images.add_legend(shown, [fed])
    assert tuple(sheet[12, 12]) == visualize.PALETTE[0] and len(sheet) > len(shown)


def test_a_detector_without_candidates_is_named(run, fed, tmp_path):
    with pytest.raises(UserError, match="--assign: yolox has neither anchors nor points"):
        fed_images.assign(run, [fed], tmp_path)


@pytest.mark.parametrize(
    "arguments, line",
    [
        (["--images=0"], "error: --images wants at least 1, found 0"),
        (["--step=-1"], "error: --step wants at least 0, found -1"),
        (["--asign"], "error: unknown flag --asign; did you mean --assign?"),
    ],
)
def test_a_mistake_is_one_line(arguments, line, place, capfd):
    with pytest.raises(SystemExit) as ended:
        browse.main(["browse", "--config=tests/training/tiny_config.py", *arguments])

    assert ended.value.code == 1 and capfd.readouterr().err == f"{line}\n"


def test_the_command_draws_a_sheet_or_a_folder(place, capfd, tmp_path):
    config = "--config=tests/training/tiny_config.py"
    root = f"--config.data.root={place.folder / 'data'}"
    for out, flags, files in (("sheet.png", ["--assign"], 1), ("folder", [], 3)):
        out = tmp_path / "new" / out
        with pytest.raises(SystemExit) as ended:
            browse.main(["browse", config, root, "--images=3", f"--out={out}", *flags])
        printed, errors = capfd.readouterr()
        assert ended.value.code == 0, errors
        assert f"3 images from step 0 on are drawn in {out}" in printed
        cells = re.findall(r"stride +(\d+): +(\d+) x", printed)
        wanted = [("4", "16"), ("8", "8"), ("16", "4"), ("32", "2"), ("64", "1")]
        assert cells == (wanted if flags else [])
        written = [out] if files == 1 else sorted(out.iterdir())
        assert len(written) == files and all(cv2.imread(str(f)) is not None for f in written)
