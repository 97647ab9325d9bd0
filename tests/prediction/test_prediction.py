"""From images in any form to what is found on them; equal to what an evaluation finds."""

import sys
from contextlib import closing
from types import SimpleNamespace

import cv2
import jax.numpy as jnp
import numpy as np
import pytest
from prediction import tiny_model

from jaxdet import detectors
from jaxdet.data import pipeline
from jaxdet.evaluation import runner
from jaxdet.prediction import Found, Predictor, inputs
from jaxdet.prediction.found import write_picture
from jaxdet.prediction.predictor import LONGEST_WAIT
from jaxdet.training import steps
from jaxdet.types import Detections, UserError


@pytest.fixture(scope="module")
def contents():
    return tiny_model.draw_contents()


@pytest.fixture(scope="module")
def detector(contents):
    return detectors.build(contents.detector, num_classes=2, **contents.settings)


@pytest.fixture(scope="module")
def model(contents, detector):
    return Predictor(contents, detector)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    return tiny_model.write_photographs(tmp_path_factory.mktemp("photographs"))


@pytest.fixture(scope="module")
def found(model, photographs):
    return model(photographs)


@pytest.fixture
def two(photographs):
    """A result with two boxes, made by hand."""
    return Found(
        boxes=np.float32([[1, 2, 31, 22], [0.5, 0, 10, 40]]),
        scores=np.float32([0.75, 0.25]),
        labels=np.int32([1, 0]),
        image=photographs[0],
        size=(40, 50),
        class_names=("circle", "square"),
        category_ids=(7, 90),
    )


def same(one, other):
    return all(
        np.array_equal(getattr(one, name), getattr(other, name), equal_nan=True)
        for name in ("boxes", "scores", "labels")
    )


class Files:
    """The photographs as a source of an evaluation."""

    class_names = tiny_model.NAMES

    def __init__(self, paths):
        self.paths = paths

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        example = inputs.decode(self.paths[index])
        return example._replace(image=self.paths[index].read_bytes())


def test_results_are_those_of_an_evaluation_to_the_last_bit(found, contents, detector, photographs):
    # As eval.py does: one image on each of eight devices.
    predict = steps.pmap_predict_step(detector)
    variables = steps.put_state(contents.variables)
    batches = pipeline.eval_batches(
        Files(photographs), batch_size=8, canvas=contents.canvas, resize=contents.resize
    )
    with closing(batches):
        placed = runner.run(lambda images: predict(variables, images), batches)
    wanted = [placed[place][1] for place in range(len(photographs))]

    assert len(found) == len(placed) == len(photographs)
    assert all(map(same, found, wanted))
    assert all(len(each) >= 5 for each in found)


def test_boxes_are_in_pixels_of_the_image_and_best_first(found, photographs):
    for each, path, size in zip(found, photographs, tiny_model.SIZES, strict=True):
        assert each.boxes.dtype == each.scores.dtype == np.float32
        assert each.image == path and each.size == size
        assert (each.boxes >= 0).all() and (each.boxes <= [*size[::-1]] * 2).all()
        assert (np.diff(each.scores) <= 0).all()
        assert each.names == [("circle", "square")[label] for label in each.labels]
    assert max(found[3].boxes[:, 3]) > 96, "beyond the canvas, within the image"


def test_detectors_are_told_the_scale_of_each_image(contents, detector, photographs):
    def predict(variables, images):
        zeros = jnp.zeros((len(images.scales), 1), int)
        return Detections(zeros[..., None] * jnp.ones(4), images.scales[:, None], zeros, zeros == 0)

    model = Predictor(contents, detector._replace(predict=predict))
    wanted = [min(64 / height, 96 / width) for height, width in tiny_model.SIZES]
    for batch_size in (1, 2):
        found = model(photographs, batch_size=batch_size)
        np.testing.assert_allclose([float(each.scores[0]) for each in found], wanted, rtol=1e-6)


def test_each_image_is_seen_on_the_canvas_that_fits_it_best(contents, detector, photographs):
    several = contents._replace(more_canvases=((96, 64),))

    def predict(variables, images):
        zeros = jnp.zeros((len(images.scales), 1), int)
        canvas = jnp.float32(images.pixels.shape[1] / images.pixels.shape[2]) + zeros
        return Detections(images.sizes[:, None, [1, 0, 1, 0]] * 1.0, canvas, zeros, zeros == 0)

    model = Predictor(several, detector._replace(predict=predict))
    assert (model.canvas, model.canvases) == ((64, 96), ((64, 96), (96, 64)))
    lying, upright = (inputs.decode(path) for path in (photographs[1], photographs[3]))
    assert (lying.size, upright.size) == ((64, 96), (333, 222))
    for batch_size, asked in ((1, "lulu"), (2, "luull"), (3, "u" + 30 * "l"), (2, "")):
        taken = []

        def give(asked=asked, taken=taken):
            for letter in asked:
                taken.append(letter)
                yield lying if letter == "l" else upright

        seen = []
        for example, found in model.stream(give(), batch_size=batch_size):
            seen.append("l" if example.size == lying.size else "u")
            assert len(taken) - len(seen) <= (LONGEST_WAIT + 3) * batch_size, "few are held"
            assert found.scores[0] == np.float32(64 / 96 if seen[-1] == "l" else 96 / 64)
            np.testing.assert_array_equal(found.boxes[0, 2:], example.size[::-1])
        assert "".join(seen) == asked


def test_files_folders_arrays_and_lists_are_asked_alike(model, found, photographs):
    array = inputs.decode(photographs[2]).image
    (photographs[0].parent / "notes.txt").write_text("no image")
    hidden = photographs[0].parent / f"._{photographs[0].name}"
    hidden.write_bytes(b"as Mac archives have it beside each file")

    assert all(map(same, model(photographs[0].parent), found))
    assert same(model(str(photographs[1]))[0], found[1])
    assert same(model(array)[0], found[2])
    assert model(array)[0].image is array
    mixed = model([array[:, ::-1][:, ::-1], photographs[0], [str(photographs[1])]])
    assert all(map(same, mixed, [found[2], found[0], found[1]]))
    assert model([]) == []
    assert list(inputs.gather(hidden)) == [hidden], "what is named is asked for"


def test_a_batch_that_is_not_full_is_filled_up(model, found, photographs):
    batched = model(photographs, batch_size=3)

    assert same(model(photographs[:1], batch_size=3)[0], batched[0]), "whatever is beside it"
    for one, other in zip(batched, found, strict=True):
        # Weights drawn at random spread the rounding of another batch size.
        np.testing.assert_allclose(one.boxes, other.boxes, atol=0.5)
        np.testing.assert_array_equal(one.labels, other.labels)
    assert model._predict._cache_size() == 2, "one program for each batch size"


def test_the_lowest_score_leaves_the_others_as_they_are(model, found, photographs):
    bound = float(found[0].scores[3])
    some = model(photographs[0], score=bound)[0]

    assert some.scores.min() >= bound and len(some) == (found[0].scores >= bound).sum()
    np.testing.assert_array_equal(some.boxes, found[0].boxes[: len(some)])


def test_a_photograph_is_turned_as_its_exif_says(model, photographs, tmp_path):
    # A JPEG whose EXIF has the one entry Orientation: 6, a quarter turn to the right.
    exif = bytes.fromhex("4578696600004d4d002a00000008000101120003000000010006000000000000")
    marker = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
    pixels = tiny_model.draw_photograph((40, 50), 0)
    jpeg = cv2.imencode(".jpg", pixels)[1].tobytes()
    (tmp_path / "turned.jpg").write_bytes(jpeg[:2] + marker + jpeg[2:])
    turned = model(tmp_path / "turned.jpg")[0]

    assert turned.size == (50, 40)
    assert turned.draw().shape == (480, 384, 3)


@pytest.mark.parametrize(
    "asked, line",
    [
        ("photo9.png", r"photo9.png: there is no such image; did you mean .*photo\d.png\?"),
        ("empty", "empty: there is no image in this folder"),
        ("broken.png", "broken.png: not an image, or a damaged one"),
        (np.zeros((4, 4), np.uint8), r"found \(4, 4\) uint8"),
        (np.zeros((4, 4, 3)), r"found \(4, 4, 3\) float64"),
        (np.zeros((0, 4, 3), np.uint8), r"found \(0, 4, 3\)"),
        (np.zeros((2, 4, 4, 3), np.uint8), "give several as a list"),
        (None, r"an image wants to be the path of a file, or an array .* found \(\) object"),
    ],
)
def test_what_is_no_image_is_one_line(model, photographs, asked, line):
    folder = photographs[0].parent
    (folder / "empty").mkdir(exist_ok=True)
    broken = folder / "broken.png"
    broken.write_bytes(photographs[0].read_bytes()[:60])
    try:
        with pytest.raises(UserError, match=line):
            model(folder / asked if isinstance(asked, str) else asked)
    finally:
        broken.unlink()


@pytest.mark.parametrize("keywords", [{"score": 1.5}, {"score": -1.0}, {"batch_size": 0}])
def test_settings_out_of_range_are_one_line(model, photographs, keywords):
    with pytest.raises(UserError, match=f"{[*keywords][0]} wants .* found"):
        model(photographs[0], **keywords)


def test_a_detector_of_given_proposals_is_refused():
    contents = tiny_model.draw_contents("fast_rcnn", max_proposals=4)
    with pytest.raises(UserError, match="fast_rcnn wants proposals with each image"):
        Predictor(contents, detectors.build("fast_rcnn", num_classes=2, **contents.settings))


def test_what_tells_no_classes_apart_finds_objects():
    contents = tiny_model.draw_contents("rpn")
    model = Predictor(contents, detectors.build("rpn", num_classes=2, **contents.settings))

    assert model.class_names == ("object",) and model.category_ids is None


def test_a_result_is_printed_as_a_table(two, photographs):
    assert str(two).splitlines() == [
        f"{photographs[0]}: 2 found on 50 x 40 pixels",
        "class   score       x1       y1       x2       y2",
        "square  0.750      1.0      2.0     31.0     22.0",
        "circle  0.250      0.5      0.0     10.0     40.0",
    ]
    assert repr([two]) == f"[<{photographs[0]}: 2 found on 50 x 40 pixels>]"
    assert len(two) == 2


def test_nothing_found_can_be_shown_too(two):
    none = Found(**{**vars(two), **{k: getattr(two, k)[:0] for k in ("boxes", "scores", "labels")}})

    assert len(none) == 0 and "0 found" in str(none) and none.to_coco(1) == []
    assert none.draw().shape == (384, 480, 3)


def test_many_boxes_are_printed_in_part(two):
    many = {k: np.repeat(getattr(two, k), 20, axis=0) for k in ("boxes", "scores", "labels")}

    assert str(Found(**{**vars(two), **many})).splitlines()[-1] == "... and 10 more"


def test_a_result_is_drawn_and_saved(two, tmp_path):
    picture = two.draw()
    two.save(tmp_path / "picture.png")

    assert picture.dtype == np.uint8 and picture.shape == (384, 480, 3)
    saved = cv2.imread(str(tmp_path / "picture.png"))[..., ::-1]
    np.testing.assert_array_equal(saved, picture)
    with pytest.raises(UserError, match="pictures are written as .jpg or .png"):
        two.save(tmp_path / "picture.xyz")


def test_a_result_becomes_cocos(two):
    first, second = two.to_coco(12)

    assert first == {
        "image_id": 12,
        "category_id": 90,
        "bbox": [1.0, 2.0, 30.0, 20.0],
        "score": 0.75,
    }
    assert second["category_id"] == 7
    assert two.to_coco("a", (1, 5))[0]["category_id"] == 5
    bare = Found(**{**vars(two), "category_ids": None})
    assert [item["category_id"] for item in bare.to_coco(1)] == [2, 1]


def test_a_result_becomes_supervisions(two, monkeypatch):
    def detections(*, xyxy, confidence, class_id, data):
        return SimpleNamespace(xyxy=xyxy, confidence=confidence, class_id=class_id, data=data)

    monkeypatch.setitem(sys.modules, "supervision", SimpleNamespace(Detections=detections))
    given = two.to_supervision()
    assert given.xyxy is two.boxes and given.confidence is two.scores
    assert given.data["class_name"].tolist() == ["square", "circle"]

    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(UserError, match="pip install supervision"):
        two.to_supervision()


def test_a_picture_that_its_format_cannot_hold_is_one_line(tmp_path):
    wide = np.zeros((1, 70_000, 3), np.uint8)
    with pytest.raises(UserError, match="writes no .jpg of 70000 x 1 pixels"):
        write_picture(tmp_path / "wide.jpg", wide)
    write_picture(tmp_path / "wide.png", wide)
