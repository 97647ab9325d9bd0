"""The whole way from the pixels of images to boxes on them, as one function of JAX."""

import importlib.metadata
import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxdet import detectors
from jaxdet.export.letterbox import letterbox
from jaxdet.model_file import Contents
from jaxdet.types import Detections, Detector, Images

DYNAMIC = "dynamic"  # Any number of images.
OUTPUTS = Detections._fields


class Program(NamedTuple):
    """What is written into a file.

    Attributes:
        call: `(pixels, height, width) -> Detections`, in pixels of the images;
            the sides are numbers, or arrays.
        batch: images at once, or `DYNAMIC`.
        size: (height, width) of the images, or None for any, all of a batch alike.
        about: what the reader of the file has to know.
    """

    call: Callable
    batch: int | str
    size: tuple[int, int] | None
    about: dict[str, Any]


def make(
    contents: Contents,
    detector: Detector,
    *,
    class_names: tuple[str, ...],
    category_ids: tuple[int, ...] | None,
    batch: int | str,
    size: tuple[int, int] | None,
) -> Program:
    """Joins resizing, detector and its weights, and undoing the resize.

    Args:
        contents: of the model.
        detector: of the contents.
        class_names: name of each label that is found.
        category_ids: number of each in the data's own files, or None.
        batch: images at once; `DYNAMIC` takes any number, one after another.
        size: (height, width) of the images, or None for any.
    """
    variables = jax.tree.map(jnp.asarray, contents.variables)

    def some(pixels, height, width):
        boxed = letterbox(
            pixels,
            height,
            width,
            canvas=contents.canvas,
            resize=contents.resize,
            rule=contents.resize_rule,
        )
        count = pixels.shape[0]
        content = _stack(boxed.size, jnp.int32)
        scales = jnp.full(count, boxed.scale, jnp.float32)
        images = Images(boxed.pixels, jnp.broadcast_to(content, (count, 2)), scales)
        found = detector.predict(variables, images)
        limits = _stack((width, height) * 2, jnp.float32)
        ratios = limits / _stack(boxed.size[::-1] * 2, jnp.float32)
        boxes = jnp.clip(found.boxes * ratios, 0, limits)
        return found._replace(boxes=boxes, labels=found.labels.astype(jnp.int32))

    def one_by_one(pixels, height, width):
        def one(image):
            return jax.tree.map(lambda values: values[0], some(image[None], height, width))

        return jax.lax.map(one, pixels)

    about = {
        "jaxdet": importlib.metadata.version("jaxdet"),
        "detector": contents.detector,
        "class_names": class_names,
        "category_ids": category_ids,
        "canvas": contents.canvas,
        "resize": contents.resize,
        "resize_rule": contents.resize_rule,
        "pixels": f"{_word(batch)} x {_words(size)} x 3, uint8, RGB",
        "boxes": "x1, y1, x2, y2 in pixels of the image, float32, x2 and y2 exclusive",
        "scores": "0 to 1, float32, best first",
        "labels": "places in class_names, int32",
        "valid": "bool: the other rows are empty",
    }
    return Program(one_by_one if batch == DYNAMIC else some, batch, size, about)


def in_float32(contents: Contents, detector: Detector) -> Detector:
    """The detector that computes in float32 what it would in another type."""
    settings = contents.settings | {"dtype": "float32"}
    if contents.settings.get("dtype", "float32") == "float32":
        return detector
    return detectors.build(contents.detector, num_classes=len(contents.class_names), **settings)


def texts(about: dict[str, Any]) -> dict[str, str]:
    """What is known of a program, each as JSON."""
    return {key: json.dumps(value, ensure_ascii=False) for key, value in about.items()}


def _stack(numbers: Sequence, dtype: Any) -> Array:
    return jnp.stack([jnp.asarray(number, dtype) for number in numbers])


def _word(batch: int | str) -> str:
    return "any number" if batch == DYNAMIC else str(batch)


def _words(size: tuple[int, int] | None) -> str:
    return "any height x any width" if size is None else f"{size[0]} x {size[1]}"
