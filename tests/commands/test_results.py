"""What variables find on a source: results, pictures, proposals."""

import json
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from faster_coco_eval import COCO, COCOeval_faster

from jaxdet import detectors, visualize
from jaxdet.commands import finding, results, splits
from jaxdet.data import sources
from jaxdet.evaluation import EVALUATIONS
from jaxdet.training import processes
from jaxdet.types import Detections, Detector, Example, UserError

NOTHING = Detector(*[lambda: None] * 3)
COUNTS = {"images": 4, "objects": 1, "ignored": 0, "unreadable": 1, "left_out": 0}


class FourPictures:
    """A source whose third picture is broken, seen by a detector that finds nothing."""

    class_names = ("circle", "square")
    broken = 2

    def __len__(self):
        return 4

    def __getitem__(self, i):
        image = cv2.imencode(".png", np.full((200, 300, 3), 60 * i + 30, np.uint8))[1].tobytes()
        objects = int(i == 2)
        none = np.zeros(objects, bool)
        return Example(
            id=f"picture {i}",
            image=b"broken" if i == self.broken else image,
            boxes=np.tile(np.float32([10, 10, 50, 50]), (objects, 1)),
            labels=np.zeros(objects, np.int32),
            crowd=none,
            difficult=none,
            area=np.full(objects, 1600.0),
            size=(200, 300),
        )

    @staticmethod
    def predict(variables, images):
        shape = (*images.scales.shape, 1)
        zeros = np.zeros(shape, np.float32)
        return Detections(np.zeros((*shape, 4), np.float32), zeros, zeros.astype(int), zeros > 0)

    @staticmethod
    def predict_whole(variables, images):
        """Finds the whole picture; the score is its brightness."""
        boxes = np.tile(np.float32([0, 0, 999, 999]), (*images.scales.shape, 1, 1))
        scores = images.pixels[..., :1, 0, 0] / np.float32(255)
        return Detections(boxes, scores, np.zeros(scores.shape, int), scores > 0)


def test_objects_of_an_image_that_cannot_be_read_count_as_missed(configure, caplog):
    config = configure("--config.num_pictures=4")
    source = FourPictures()
    found = results.evaluate(config, source, source.predict, {})
    assert "1 of 4 images cannot be read" in caplog.text
    assert found.items() >= COUNTS.items()
    table = results.format_table(config, found)
    assert table.endswith(
        "4 images with 1 objects; 1 cannot be read: their objects count as missed"
    )
    pictures = finding.draw(config, NOTHING, source, source.predict, {})
    assert [name for name, _ in pictures] == ["picture 0", "picture 1", "picture 3"]
    assert [np.bincount(pixels.ravel()).argmax() for _, pixels in pictures] == [30, 90, 210]


class Gone(FourPictures):
    """The same pictures, of which a file is gone."""

    def __getitem__(self, i):
        if i == self.broken:
            raise FileNotFoundError(2, "No such file", f"{i}.png")
        return super().__getitem__(i)


def test_images_of_which_nothing_is_known_are_left_out_and_counted(configure, tmp_path, caplog):
    config, source = configure("--config.eval_images=2"), Gone()
    found = results.evaluate(config, source, source.predict_whole, {})
    assert found.items() >= (COUNTS | {"images": 1, "objects": 0, "left_out": 1}).items()
    table = results.format_table(config, found)
    assert table.endswith(
        "0 objects; 1 more cannot be read and are left out: nothing is known of them"
    )

    pairs = finding.detect(config, source, source.predict_whole, {}, 0)
    again = results.judge(config, source, pairs)
    assert again == found, "the same two images, where all are predicted"
    caplog.clear()
    file = str(tmp_path / "p.npz")
    assert results.write_proposals(file, source, pairs) == 3
    assert caplog.messages == [f"{file}: 1 images that cannot be read are left out: no id is known"]
    assert results.write_results(tmp_path / "r.json", source, pairs, None) == 3
    source.ids = lambda: ["a", "b", "c", "d"]
    assert results.write_proposals(file, source, pairs) == 4
    with np.load(file) as written:
        assert written["counts"].tolist() == [1, 1, 0, 1]
        assert written["ids"].tolist() == ["a", "b", "c", "d"]


def test_processes_share_the_images_of_an_evaluation_and_get_what_all_found(configure, monkeypatch):
    source, seen = FourPictures(), []
    alone = finding.detect(configure(), source, source.predict_whole, {}, 0)

    def predict(variables, images):
        seen.append(np.count_nonzero(images.scales < 1))
        return source.predict_whole(variables, images)

    def on_two(make):
        return [make.func(*make.args[:-1], (index, 2)) for index in (0, 1)]

    monkeypatch.setattr(processes, "gather", on_two)
    shared = finding.detect(configure(), source, predict, {}, 0, together=True)
    assert seen == [1, 2], "the third picture, of the first process, is broken"
    assert [example.id for example, _ in shared] == [example.id for example, _ in alone]
    for (_, one), (_, other) in zip(shared, alone, strict=True):
        assert (one is finding.NOTHING) == (other is finding.NOTHING)
        assert [a.tolist() for a in one] == [a.tolist() for a in other]


def test_images_with_more_objects_than_the_detector_gives_are_said(configure, caplog):
    source = WithTruth()
    finding.detect(configure(), source, source.predict_whole, {}, 0)
    assert not caplog.messages
    source.objects = 3
    finding.detect(configure(), source, source.predict_whole, {}, 0)
    (line,) = caplog.messages
    assert line.startswith(
        "4 of 4 images show more objects than the 1 that the detector gives, up to 3: "
    )


def test_objects_that_need_not_be_found_are_counted_apart(configure):
    source = FourPictures()
    whole = [source[i]._replace(crowd=np.ones(int(i == 2), bool)) for i in range(4)]
    found = results.judge(configure(), source, [(each, finding.NOTHING) for each in whole])
    assert (found["objects"], found["ignored"]) == (0, 1)
    table = results.format_table(configure(), found)
    assert "4 images with 0 objects and 1 that need not be found, crowds or difficult" in table


@pytest.mark.parametrize("tells, names", [(True, ("circle", "square")), (False, ("object",))])
def test_what_tells_no_classes_apart_is_drawn_as_objects(configure, monkeypatch, tells, names):
    drawn, blank = [], np.zeros((2, 2, 3), np.uint8)
    monkeypatch.setattr(visualize, "compare", lambda *given, **_: drawn.append(given) or blank)
    config = configure("--config.num_pictures=1")
    detector = NOTHING._replace(tells_classes=tells)
    finding.draw(config, detector, FourPictures(), FourPictures.predict, {})
    assert [given[3] for given in drawn] == [names]


def test_confusion_matrices_are_drawn_with_the_names_of_their_classes(configure, monkeypatch):
    drawn, blank = [], np.zeros((2, 2, 3), np.uint8)
    monkeypatch.setattr(visualize, "confusion_matrix", lambda *given: drawn.append(given) or blank)
    source = FourPictures()
    matrices = {"rpn_confusion": np.eye(2, dtype=int), "roi_confusion": np.eye(3, dtype=int)}
    unexplained = {"mine": np.eye(4, dtype=int)}
    config = configure("--config.num_pictures=0")
    detector = detectors.build(
        "faster_rcnn", num_classes=2, rpn={"confusion": True}, roi={"confusion": True}
    )
    pictures = finding.draw(config, detector, source, source.predict, {}, matrices | unexplained)
    assert [name for name, _ in pictures] == list(matrices)
    assert [names for _, names in drawn] == [
        ("object", "background"),
        ("circle", "square", "background"),
    ]


@pytest.mark.parametrize("name", EVALUATIONS)
def test_of_each_evaluation_at_most_so_many_images_are_evaluated(configure, monkeypatch, name):
    config = configure(f"--config.evaluation.name={name}", "--config.eval_images=2")
    seen, evaluate = [], EVALUATIONS[name].evaluate

    def look(examples, *detections, **settings):
        seen.extend(example.id for example in examples)
        return evaluate(examples, *detections, **settings)

    monkeypatch.setattr(EVALUATIONS[name], "evaluate", look)
    source = FourPictures()
    source.broken = None
    found = results.evaluate(config, source, source.predict_whole, {})
    assert seen == ["picture 0", "picture 2"]
    assert EVALUATIONS[name].BEST in found


def test_proposals_that_are_written_can_be_given(configure, monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(sources, "build", lambda *arguments, **settings: FourPictures())
    config = configure("--config.evaluation.name=proposals", "--config.eval_images=2")
    seen = SimpleNamespace(evaluate=lambda *given, **settings: {"given": given, **settings})
    monkeypatch.setitem(EVALUATIONS, "proposals", seen)
    source, file = FourPictures(), tmp_path / "new" / "VOC2007" / "test.npz"
    pairs = finding.detect(config, source, source.predict_whole, {}, 0)
    assert results.write_proposals(str(file), source, pairs) == 4
    found = results.judge(config, source, pairs)
    examples, detections, class_names = found.pop("given")
    assert [example.id for example in examples] == ["picture 0", "picture 2"]
    assert (len(detections), class_names) == (2, source.class_names)
    assert found.pop("limits") == (100, 300, 1000)
    assert "1 of 4 images cannot be read" in caplog.text

    config.data.proposals = f"{tmp_path}/new/{{split}}.npz"
    given = splits.open_source(config, "VOC2007/test", ())
    for i, count in enumerate([1, 1, 0, 1]):  # The third cannot be read.
        example = given[i]
        np.testing.assert_array_equal(example.proposals, np.tile([0, 0, 300, 200], (count, 1)))
        np.testing.assert_allclose(example.proposal_scores, [(60 * i + 30) / 255] * count)
    with pytest.raises(UserError, match="no proposals file .*new/train.npz"):
        splits.open_source(config, "train", ())


class WithTruth(FourPictures):
    """The same pictures; on each an object, on the last one one that is not found."""

    broken, annotated, objects = None, True, 1

    def __getitem__(self, i):
        box = np.float32([[0, 0, 300, 200 - 30 * i if i < 3 else 20]] * self.objects)
        area = np.prod(box[:, 2:], axis=1, dtype=np.float64)
        kept, none = np.zeros(self.objects, int), np.zeros(self.objects, bool)
        found = super().__getitem__(i)._replace(id=10 * i + 7, boxes=box, labels=kept)
        return found._replace(crowd=none, difficult=none, area=area)


def test_results_for_a_test_server_give_the_same_numbers_there(configure, tmp_path):
    source, file = WithTruth(), tmp_path / "new" / "results.json"
    config, ids = configure(), (90, 7)
    pairs = finding.detect(config, source, source.predict_whole, {}, 0)
    assert results.write_results(file, source, pairs, ids) == 4
    items = json.loads(file.read_text())
    assert [item["image_id"] for item in items] == [7, 17, 27, 37]
    assert items[1] == {
        "image_id": 17,
        "category_id": 90,
        "bbox": [0, 0, 300, 200],
        "score": pytest.approx(90 / 255),
    }

    found = results.judge(config, source, pairs)
    examples = [source[i] for i in range(4)]
    truth = COCO(
        {
            "images": [{"id": each.id, "height": 200, "width": 300} for each in examples],
            "categories": [{"id": number, "name": str(number)} for number in sorted(ids)],
            "annotations": [
                {
                    "id": i + 1, "image_id": each.id, "category_id": 90, "iscrowd": 0,
                    "bbox": each.boxes[0].tolist(), "area": float(each.area[0]),
                }
                for i, each in enumerate(examples)
            ],
        }
    )  # fmt: skip
    server = COCOeval_faster(truth, truth.loadRes(str(file)), iouType="bbox", print_function=str)
    server.run()
    names = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]
    ours = [-1 if found[name] is None else found[name] for name in names]
    np.testing.assert_allclose(server.stats[:12], ours, atol=1e-12)
    assert 0.2 < found["AP"] < found["AP50"] < 1


def test_pictures_without_annotations_are_only_predicted(configure, monkeypatch, tmp_path):
    source, file = WithTruth(), tmp_path / "results.json"
    source.annotated = False
    pairs = finding.detect(configure(), source, source.predict_whole, {}, 0)
    results.write_results(file, source, pairs, None)
    assert {item["category_id"] for item in json.loads(file.read_text())} == {1}
    monkeypatch.setattr(sources, "build", lambda *arguments, **settings: source)
    with pytest.raises(UserError, match="'test' of .* has images, but no annotations"):
        splits.open_source(configure(), "test", ())
