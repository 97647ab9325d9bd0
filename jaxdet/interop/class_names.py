"""Names of the classes that published detectors tell apart."""

from pathlib import Path

from jaxdet.literals import read_literal
from jaxdet.text_files import read_text
from jaxdet.types import UserError

# The id of each in COCO's files; those that are left out label nothing there.
COCO = dict(
    [
        *enumerate(("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train"), 1),
        *enumerate(("truck", "boat", "traffic light", "fire hydrant"), 8),
        *enumerate(("stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse"), 13),
        *enumerate(("sheep", "cow", "elephant", "bear", "zebra", "giraffe"), 20),
        *enumerate(("backpack", "umbrella"), 27),
        *enumerate(("handbag", "tie", "suitcase", "frisbee", "skis", "snowboard"), 31),
        *enumerate(("sports ball", "kite", "baseball bat", "baseball glove", "skateboard"), 37),
        *enumerate(("surfboard", "tennis racket", "bottle"), 42),
        *enumerate(("wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana"), 46),
        *enumerate(("apple", "sandwich", "orange", "broccoli", "carrot", "hot dog"), 53),
        *enumerate(("pizza", "donut", "cake", "chair", "couch", "potted plant", "bed"), 59),
        (67, "dining table"),
        (70, "toilet"),
        *enumerate(("tv", "laptop", "mouse", "remote", "keyboard", "cell phone"), 72),
        *enumerate(("microwave", "oven", "toaster", "sink", "refrigerator"), 78),
        *enumerate(("book", "clock", "vase", "scissors", "teddy bear"), 84),
        *enumerate(("hair drier", "toothbrush"), 89),
    ]
)
VOC = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)
# Numbers of classes that detectors of COCO count -> the ids that they are of. torchvision counts
# all ids up to the last, and in RetinaNet 0, too.
COCO_IDS = {80: tuple(COCO), 90: tuple(range(1, 91)), 91: tuple(range(91))}


def read_classes(said: str, count: int) -> tuple[tuple[str, ...], tuple[int, ...] | None]:
    """Class names, and their numbers in the data's own files where these are known.

    >>> read_classes("('cat', 'dog')", 2)
    (('cat', 'dog'), None)

    Args:
        said: "coco", "voc", a tuple of names, or a text file with a name a line.
        count: number of classes of the weights.

    Raises:
        UserError: if there are not as many names as classes, one is empty or there
            twice, or it is nothing of these.
    """
    numbers = None
    if said == "coco":
        if count not in COCO_IDS:
            raise UserError(
                f"--classes=coco wants weights of 80 classes (torchvision: 90 or 91), found {count}"
            )
        numbers = COCO_IDS[count]
        names = tuple(COCO.get(number, f"unused {number}") for number in numbers)
    else:
        names = VOC if said == "voc" else _listed(said)
        for name in names:
            if not name.strip():
                raise UserError(f"--classes={said} wants a name for each class, found {name!r}")
            if names.count(name) > 1:
                raise UserError(f"--classes={said} wants different names, found {name!r} twice")
    if len(names) != count:
        raise UserError(
            f"--classes={said} names {len(names)} classes, the weights are of {count} classes"
        )
    return names, numbers


def number_classes(names: tuple[str, ...]) -> tuple[int, ...] | None:
    """The number of each class in COCO's files if they are just COCO's, else None.

    Older versions of mmdetection write "traffic_light".
    """
    spaced = tuple(name.replace("_", " ") for name in names)
    return tuple(COCO) if spaced == tuple(COCO.values()) else None


def _listed(said: str) -> tuple[str, ...]:
    names = read_literal(said)
    if isinstance(names, list | tuple) and all(isinstance(name, str) for name in names):
        return tuple(names)
    try:
        path = Path(said).expanduser()
        there = path.is_file()
    except (OSError, RuntimeError, ValueError):  # Too long for a name, or of nobody's home.
        there = False
    if there:
        return tuple(filter(None, map(str.strip, read_text(path).splitlines())))
    raise UserError(
        f"--classes wants coco, voc, names such as \"('cat', 'dog')\" or a text file with a name "
        f"a line, found {said}"
    )
