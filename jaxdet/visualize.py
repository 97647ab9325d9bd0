"""Boxes drawn on images, and confusion matrices; host side, OpenCV. Images are RGB uint8."""

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from jaxdet.types import Example

# One colour a class, the most different ones first; more classes than colours begin again.
PALETTE = (
    (25, 110, 255),  # blue
    (255, 135, 0),  # orange
    (20, 175, 70),  # green
    (225, 30, 60),  # red
    (150, 60, 220),  # violet
    (0, 200, 220),  # cyan
    (255, 60, 190),  # magenta
    (250, 215, 20),  # yellow
    (150, 85, 30),  # brown
    (160, 225, 30),  # lime
    (0, 125, 110),  # teal
    (255, 165, 150),  # salmon
    (105, 105, 190),  # slate
    (200, 160, 230),  # lavender
    (130, 130, 10),  # olive
    (170, 20, 110),  # wine
)
MIN_SIDE = 480  # Smaller images are enlarged to this longer side, so that text can be read.
FONT = cv2.FONT_HERSHEY_SIMPLEX
# Pixels of a confusion matrix with few classes, of a cell with many, and around it.
MATRIX_SIDE, CELL_SIDE, MAX_CELL_SIDE, GAP = 480, 38, 120, 8
# Its colours for a share of 0, of a half and of 1.
SHADES = np.array([(255, 255, 255), (120, 170, 220), (8, 48, 107)], float)
WHITE, BLACK, PAPER, INK = (255, 255, 255), (0, 0, 0), (246, 246, 246), (40, 40, 40)


def draw(
    image: UInt8[np.ndarray, "H W 3"],
    boxes: Float[np.ndarray, "N 4"],
    labels: Int[np.ndarray, " N"],
    class_names: Sequence[str],
    *,
    scores: Float[np.ndarray, " N"] | None = None,
    valid: Bool[np.ndarray, " N"] | None = None,
    colour: tuple[int, int, int] | None = None,
) -> UInt8[np.ndarray, "_ _ 3"]:
    """Draws boxes with their class names, and scores in percent, on a copy of an image.

    A name stands where it hides the least of boxes and other names, inside the
    picture. Images with a longer side below 480 pixels are enlarged to that.

    Args:
        image: RGB.
        boxes: in pixels of `image`.
        labels: places in `class_names`.
        class_names: name of each label.
        scores: 0..1, written behind the name; none where not given.
        valid: True for the boxes to draw; all where not given.
        colour: RGB of all boxes; one a class where not given.
    """
    keep = np.ones(len(boxes), bool) if valid is None else valid
    canvas, factor = _enlarge(image)
    boxes = _corners(boxes[keep] * factor, canvas.shape)
    texts = [str(class_names[label]) for label in labels[keep]]
    if scores is not None:
        texts = [
            f"{text} {100 * score:.0f}" for text, score in zip(texts, scores[keep], strict=True)
        ]
    colours = [colour or PALETTE[label % len(PALETTE)] for label in labels[keep]]

    # Small boxes last, so that large ones do not cross them out.
    order = np.argsort(-_areas(boxes), kind="stable")
    for i in order:
        _draw_box(canvas, boxes[i], colours[i])
    tags = np.zeros((0, 4))
    for i in order[::-1]:
        tag = _place_tag(_tag_size(texts[i], canvas.shape), boxes[i], boxes, tags, canvas.shape)
        _draw_tag(canvas, tag, texts[i], colours[i])
        tags = np.concatenate([tags, tag[None]])
    return canvas


def compare(
    image: UInt8[np.ndarray, "H W 3"],
    example: Example,
    detections: tuple[np.ndarray, np.ndarray, np.ndarray],
    class_names: Sequence[str],
    *,
    min_score: float,
) -> UInt8[np.ndarray, "_ _ 3"]:
    """Puts the ground truth beside the predictions, each with a caption.

    Args:
        image: RGB pixels of the example.
        example: gives boxes and labels.
        detections: boxes, scores and labels, in pixels of `image`.
        class_names: name of each label.
        min_score: predictions below it are not drawn.
    """
    boxes, scores, labels = detections
    truth = draw(image, example.boxes, example.labels, class_names)
    found = draw(image, boxes, labels, class_names, scores=scores, valid=scores >= min_score)
    captions = "ground truth", f"predictions (score >= {min_score:.2f})"
    return grid([_add_caption(truth, captions[0]), _add_caption(found, captions[1])], 2)


def grid(images: Sequence[UInt8[np.ndarray, "_ _ 3"]], columns: int) -> UInt8[np.ndarray, "_ _ 3"]:
    """Lays images out in rows of `columns`, each in the middle of a cell of the largest size.

    Raises:
        ValueError: if there are no images, or `columns` is below 1.
    """
    if not images or columns < 1:
        raise ValueError(f"a grid of {len(images)} images in {columns} columns")
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    height, width = np.max([image.shape[:2] for image in images], axis=0)
    gap = max(2, max(height, width) // 100)
    sheet = np.empty((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), np.uint8)
    sheet[:] = PAPER
    for i, image in enumerate(images):
        h, w = image.shape[:2]
        top = (i // columns) * (height + gap) + (height - h) // 2
        left = (i % columns) * (width + gap) + (width - w) // 2
        sheet[top : top + h, left : left + w] = image
    return sheet


def confusion_matrix(
    matrix: Int[np.ndarray, "K K"], class_names: Sequence[str]
) -> UInt8[np.ndarray, "_ _ 3"]:
    """Draws how often each class (row) was taken for each other (column).

    The darker a cell, the larger its share of the row. Each cell holds its
    count, rounded down where it has more digits than fit (12345 as 12k); zeros
    are left out.

    Args:
        matrix: counts; rows are the truth, columns predictions.
        class_names: name of each class.

    Raises:
        ValueError: if there are not as many names as classes, or none.
    """
    if len(class_names) != len(matrix) or not len(matrix):
        raise ValueError(f"{len(class_names)} names for a confusion matrix {matrix.shape}")
    side = int(np.clip(MATRIX_SIDE // len(matrix), CELL_SIDE, MAX_CELL_SIDE))
    cells = _draw_cells(matrix, side)
    rows = [_letters(str(name)) for name in class_names]
    columns = rows
    if max(name.shape[1] for name in columns) > side - GAP:
        columns = [np.rot90(name) for name in columns]
    head = _letters("rows: truth, columns: predictions")
    left = max(name.shape[1] for name in rows) + 2 * GAP
    top = head.shape[0] + max(name.shape[0] for name in columns) + 3 * GAP

    width = max(left + cells.shape[1], head.shape[1] + GAP) + GAP
    canvas = np.empty((top + cells.shape[0] + GAP, width, 3), np.uint8)
    canvas[:] = PAPER
    canvas[top : top + cells.shape[0], left : left + cells.shape[1]] = cells
    _print(canvas, head, GAP, GAP, INK)
    for i, (row, column) in enumerate(zip(rows, columns, strict=True)):
        middle = i * side + side // 2
        _print(canvas, row, left - GAP - row.shape[1], top + middle - row.shape[0] // 2, INK)
        x, y = left + middle - column.shape[1] // 2, top - GAP - column.shape[0]
        _print(canvas, column, x, y, INK)
    return canvas


def _draw_cells(matrix, side):
    """The cells with their counts; lines between them."""
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    colours = np.stack([np.interp(shares, (0, 0.5, 1), shade) for shade in SHADES.T], axis=-1)
    cells = colours.astype(np.uint8).repeat(side, axis=0).repeat(side, axis=1)
    cells[::side], cells[:, ::side] = PAPER, PAPER
    for row, column in np.argwhere(matrix):
        number = _letters(str(matrix[row, column]))
        if number.shape[1] > side - GAP // 2:
            number = _letters(_shorten(matrix[row, column]))
        height, width = number.shape
        x, y = column * side + (side - width) // 2, row * side + (side - height) // 2
        _print(cells, number, x, y, WHITE if shares[row, column] > 0.6 else INK)
    return cells


def _shorten(count):
    """A count in at most four characters, rounded down."""
    power = (len(str(count)) - 1) // 3
    whole, rest = divmod(int(count), 1000**power)
    fraction = f".{10 * rest // 1000**power}" if power and whole < 10 else ""
    return f"{whole}{fraction}{('', *'kMGTPE')[power]}"


def _letters(text):
    """Small letters as a mask, 255 where there is ink; its height is that of all texts."""
    scale, thickness = 0.42, 1
    (_, height), descent = cv2.getTextSize("Agj|", FONT, scale, thickness)
    (width, _), _ = cv2.getTextSize(text, FONT, scale, thickness)
    mask = np.zeros((height + descent, width), np.uint8)
    return cv2.putText(mask, text, (0, height), FONT, scale, 255, thickness, cv2.LINE_AA)


def _print(canvas, letters, x, y, colour):
    height, width = letters.shape
    place = canvas[y : y + height, x : x + width]
    place[:] = place + (letters[..., None] / 255) * (np.array(colour) - place)


def _enlarge(image):
    """A copy, enlarged where small, and the factor."""
    height, width = image.shape[:2]
    factor = max(1.0, MIN_SIDE / max(height, width))
    size = max(1, round(width * factor)), max(1, round(height * factor))
    if factor == 1:
        return np.ascontiguousarray(image).copy(), factor
    return cv2.resize(image, size, interpolation=cv2.INTER_CUBIC), factor


def _corners(boxes, shape):
    """Whole pixels inside the picture, both corners inclusive; NaN becomes 0."""
    last = np.array([shape[1], shape[0], shape[1], shape[0]]) - 1
    inclusive = np.nan_to_num(boxes) - np.array([0, 0, 1, 1])
    return np.clip(np.round(inclusive), 0, last)


def _areas(boxes):
    return (boxes[:, 2] - boxes[:, 0] + 1) * (boxes[:, 3] - boxes[:, 1] + 1)


def _thickness(shape):
    return max(2, round(max(shape) / 400))


def _draw_box(canvas, box, colour):
    """A coloured line on a broader dark one, seen on bright and on dark ground."""
    start, end = (tuple(int(v) for v in corner) for corner in (box[:2], box[2:]))
    thickness = _thickness(canvas.shape)
    shade = tuple(v // 3 for v in colour)
    cv2.rectangle(canvas, start, end, shade, thickness + 2, cv2.LINE_AA)
    cv2.rectangle(canvas, start, end, colour, thickness, cv2.LINE_AA)


def _font(shape):
    """Scale and thickness of the letters for a picture of this shape."""
    scale = max(0.44, 0.44 * max(shape) / 640)
    return scale, max(1, round(1.8 * scale))


def _tag_size(text, shape):
    scale, thickness = _font(shape)
    (width, height), descent = cv2.getTextSize(text, FONT, scale, thickness)
    return np.array([width + 6, height + descent + 4])


def _place_tag(size, box, boxes, tags, shape):
    """The place beside or in a box that hides the least of boxes and of earlier tags."""
    (width, height), (x1, y1, x2, y2), edge = size, box, _thickness(shape)
    above, below = y1 - height - edge, y2 + edge
    right, left = x2 + edge, x1 - width - edge
    corners = np.array(
        [(x1 - edge, above), (x2 - width, above), (x1 - edge, below), (x2 - width, below)]
        + [(right, y1), (left, y1), (right, y2 - height), (left, y2 - height)]
        + [(x1 + edge, y1 + edge), (x1 + edge, y2 - height - edge)]
    )
    corners = np.clip(corners, 0, np.maximum([shape[1] - width, shape[0] - height], 0))
    places = np.concatenate([corners, corners + size], axis=1)
    # A tag over a tag can't be read: worse than a box covered as much. Ties go to the first.
    cost = _hidden(places, boxes).sum(axis=1) + 3 * _hidden(places, tags).sum(axis=1)
    return places[np.argmin(cost + 0.01 * np.arange(len(places)))]


def _hidden(places, things):
    """The share of each thing that each place covers, (places, things)."""
    low = np.maximum(places[:, None, :2], things[None, :, :2])
    high = np.minimum(places[:, None, 2:], things[None, :, 2:])
    return np.maximum(high - low, 0).prod(axis=2) / np.maximum(_areas(things), 1)


def _draw_tag(canvas, place, text, colour):
    x1, y1, x2, y2 = (int(v) for v in place)
    cv2.rectangle(canvas, (x1, y1), (x2 - 1, y2 - 1), colour, cv2.FILLED)
    brightness = np.dot(colour, (0.299, 0.587, 0.114))
    _write(canvas, text, (x1 + 3, y2), BLACK if brightness > 140 else WHITE)


def _write(canvas, text, bottom_left, colour):
    scale, thickness = _font(canvas.shape)
    _, descent = cv2.getTextSize(text, FONT, scale, thickness)
    origin = bottom_left[0], bottom_left[1] - descent - 1
    cv2.putText(canvas, text, origin, FONT, scale, colour, thickness, cv2.LINE_AA)


def _add_caption(image, text):
    height = int(_tag_size(text, image.shape)[1]) + 6
    captioned = np.empty((image.shape[0] + height, *image.shape[1:]), np.uint8)
    captioned[:height], captioned[height:] = PAPER, image
    _write(captioned, text, (4, height - 3), INK)
    return captioned
