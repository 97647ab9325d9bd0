import subprocess
import sys

import numpy as np
import pytest
from drawn_data import ListSource, make_example, write_coco, write_voc

from jaxdet.data import transforms
from jaxdet.data.sources import build, selection
from jaxdet.data.sources.parts import NonEmpty
from jaxdet.types import UserError


def test_build_opens_a_source_by_name(tmp_path):
    root = write_voc(tmp_path, {"a": ((40, 60), [("cat", (1, 1, 10, 10))])})
    source = build("voc", root=root, split="train", classes=("dog", "cat"))
    assert source.class_names == ("dog", "cat")
    assert source[0].labels.tolist() == [1]


@pytest.mark.parametrize(
    "name, root, classes, options, message",
    [
        (
            "vox",
            "here",
            (),
            {},
            "'vox'; there are shapes, voc, coco, yolo, csv, tfds, and mod",
        ),
        ("coco", "here", (), {"image": "x"}, "no option 'image'; it has annotations, images"),
        ("voc", "here", (), {"image": "x"}, "no option 'image'; it has annotation_folder, image_f"),
        ("shapes", "here", (), {"sizes": 3}, "no option 'sizes'; it has empty_rate, "),
        ("voc", "", (), {}, "data.root is empty"),
        ("voc", None, (), {}, "data.root is empty"),
        ("voc", "here", ("a", "b", "a"), {}, "names a class twice: a, b, a"),
        ("voc", "no/such/place", (), {}, "no folder no/such/place"),
        ("coco", "no/such/place", (), {}, "no/such/place"),
        ("tfds", "no/such/place", (), {}, "no folder no/such/place"),
    ],
)
def test_build_names_the_mistake(name, root, classes, options, message):
    with pytest.raises(UserError, match=".*") as error:
        build(name, root=root, split="train", classes=classes, **options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_non_empty_leaves_out_images_that_show_nothing_to_learn(tmp_path):
    box = [[2, 2, 9, 9]]
    examples = [
        make_example([], id=0),
        make_example(box, id=1),
        make_example(box, id=2, crowd=[True]),
        make_example(box, id=3, difficult=[True]),
    ]
    plain = ListSource(examples)
    assert [e.id for e in NonEmpty(plain)] == [1]
    assert [e.id for e in NonEmpty(plain, use_difficult=True)] == [1, 3]
    assert NonEmpty(plain).class_names == plain.class_names


def test_non_empty_reads_no_image_of_a_source_of_files(tmp_path):
    objects = [("cat", (1, 1, 10, 10))]
    root = write_voc(tmp_path, {"a": ((40, 60), []), "b": ((40, 60), objects)})
    source = build("voc", root=root, split="train")
    for path in source.paths:
        path.unlink()
    assert len(NonEmpty(source)) == 1
    with pytest.raises(FileNotFoundError):
        source[0]


@pytest.mark.parametrize(
    "example, kept",
    [
        (make_example([[2, 2, 9, 9]], size=(32, 60)), 1),
        (make_example([[2, 2, 9, 9]], size=(31, 60)), 0),
        (make_example([[61, 2, 70, 9]]), 0),  # Outside: training leaves it out.
        (make_example([[2, 2, 2.5, 9]]), 0),
    ],
)
def test_non_empty_leaves_out_tiny_images_and_boxes_that_training_cannot_use(example, kept):
    assert len(NonEmpty(ListSource([example]))) == kept


def test_voc_and_coco_are_read_without_tfds(tmp_path):
    voc = write_voc(tmp_path / "voc", {"a": ((40, 60), [("cat", (1, 1, 10, 10))])})
    image = {"id": 1, "file_name": "a.jpg", "height": 40, "width": 60}
    coco = write_coco(tmp_path / "coco", {"images": [image], "annotations": [], "categories": []})
    code = (
        "import sys\n"
        "from jaxdet.data import sources\n"
        f"for name, root in (('voc', {voc!r}), ('coco', {coco!r})):\n"
        "    assert sources.build(name, root=root, split='train')[0].size == (40, 60)\n"
        "print('tensorflow_datasets' in sys.modules)"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=True)

    assert result.stdout.strip() == "False"


def test_all_images_at_once_are_judged_as_one_by_one():
    rng = np.random.default_rng(0)
    examples = []
    for k in range(60):
        size = tuple(rng.integers(20, 60, 2).tolist())
        corners = rng.choice([-4, 0, 5.5, 6.4995, 30, 59, 61.5, np.nan], (k % 4, 2, 2))
        boxes = np.sort(corners, axis=1).reshape(-1, 4)
        flags = rng.random((2, k % 4)) < 0.2
        example = make_example([], size=size)._replace(
            boxes=boxes.astype(np.float32),
            labels=np.zeros(k % 4, np.int32),
            crowd=flags[0],
            difficult=flags[1],
            area=rng.choice([0.0, 9.0, 9.0, np.nan], k % 4),
        )
        examples.append(example)
    kept = [len(transforms.clean(each).labels) for each in examples]
    image = np.repeat(np.arange(60), [len(each.labels) for each in examples])
    usable = selection.find_usable(examples)
    assert np.bincount(image[usable], minlength=60).tolist() == kept and sum(kept) > 5
    shown = selection.show_objects(examples)
    assert shown.tolist() == [selection.shows_object(each) for each in examples]
    assert 0 < shown.sum() < 40 and len(selection.show_objects([])) == 0
