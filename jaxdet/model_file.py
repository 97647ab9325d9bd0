"""The model file: a detector's weights, and what they need to mean something, in one file.

It is a .safetensors. Its arrays are the leaves of the variables, named by their
paths, such as "params/backbone/stem_conv/kernel". Its metadata have one text,
"jaxdet", which is JSON: the fields of `Contents` but the variables, and

    format    version of all this
    version   of jaxdet, for the reader
    sha256    digest of the others and of all leaves

Reading runs nothing that the file brings: there is no pickle in it, and a module
that is not jaxdet's is taken only if it has been imported before.
"""

import hashlib
import importlib.metadata
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import safe_open
from safetensors.numpy import save

from jaxdet import detectors, whole_files
from jaxdet.detectors import nested
from jaxdet.detectors.moved import moved
from jaxdet.interop.filling import check_leaf
from jaxdet.types import RESIZE_RULES, Detector, Images, Proposals, UserError

NAME = "model.safetensors"  # In the workdir of a run.
FORMAT = 1
MAX_REASON = 200  # Characters of another library's message that are shown.


class Contents(NamedTuple):
    """What a model file holds.

    Attributes:
        detector: name of the method, see `jaxdet.build`.
        settings: its settings as nested dictionaries of plain values.
        class_names: name of each label.
        canvas: (height, width) that images are padded to.
        resize: (short, long) sides that they are resized to within the canvas;
            of several short sides the largest counts.
        variables: the weights, as arrays.
        category_ids: number of each label in the data's own files, as COCO's
            have them; None where the data has no such numbers.
        max_proposals: proposals that are given with an image, at most; 0 for none.
        resize_rule: how they are resized, see `data.transforms.resize`.
        more_canvases: further ones; an image is padded to the one on which it comes
            out largest, see `data.canvases.fit`. Files of one canvas do not say it.
    """

    detector: str
    settings: dict
    class_names: tuple[str, ...]
    canvas: tuple[int, int]
    resize: tuple[int | tuple[int, ...], int]
    variables: Any
    category_ids: tuple[int, ...] | None = None
    max_proposals: int = 0
    resize_rule: str = "rounded"
    more_canvases: tuple[tuple[int, int], ...] = ()

    @property
    def canvases(self) -> tuple[tuple[int, int], ...]:
        """All of them, the first one first."""
        return (self.canvas, *self.more_canvases)


# What the JSON holds.
TEXT_TYPES = {"format": int, "version": str, **Contents.__annotations__}
del TEXT_TYPES["variables"]
# What the first files of this format do not say, and what is not said where it is this.
LATER = {"resize_rule": "rounded"}
UNSAID = {"more_canvases": ()}


def write(path: str | os.PathLike, contents: Contents) -> None:
    """Writes a model file in one move: a kill leaves the old file, or none.

    Raises:
        UserError: for whatever `read` would refuse, and settings with which the
            detector cannot predict; nothing is written then.
    """
    path = Path(path)
    fields = contents._asdict()
    leaves = flatten_dict(fields.pop("variables"), sep="/")
    leaves = {name: np.asarray(leaf, order="C") for name, leaf in leaves.items()}
    version = importlib.metadata.version("jaxdet")
    values = {"format": FORMAT, "version": version, **fields}
    values = {key: value for key, value in values.items() if value != UNSAID.get(key, ...)}
    _check_prediction(*_open(json.loads(json.dumps(values)), leaves, path), path)
    text = json.dumps({**values, "sha256": _digest(values, leaves)})
    # `save_file` makes files that no other user may read.
    whole_files.replace(path, save(leaves, metadata={"jaxdet": text}))


def read(path: str | os.PathLike) -> tuple[Contents, Detector]:
    """Reads a model file, and builds the detector that it describes.

    Raises:
        UserError: if there is no such file, it is none of these, damaged or of
            a newer format, its weights do not fit its settings, or are not
            finite; the line names the file, and the leaf or key.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: there is no such model file")
    metadata, leaves = _read_safetensors(path)
    text = metadata.get("jaxdet")
    if text is None:
        raise UserError(
            f"{path}: this .safetensors is not a model of jaxdet: its metadata do not say what "
            "the weights are of"
        )
    values = _parse(text, path)
    if values["format"] > FORMAT:
        raise UserError(
            f"{path}: wanted format {FORMAT} of model files, found format {values['format']}, "
            f"which jaxdet {values.get('version')} wrote: this jaxdet is older"
        )
    if values.pop("sha256", None) != _digest(values, leaves):
        raise UserError(f"{path}: the file is damaged: it does not have the digest that it names")
    return _open(values, leaves, path)


def is_model(path: str | os.PathLike) -> bool:
    """Whether a file says of itself that it is a model file; its weights are not read."""
    try:
        with safe_open(path, framework="numpy") as file:
            return "jaxdet" in (file.metadata() or {})
    except Exception:  # As in reading one.
        return False


def blank_images(
    batch_size: int,
    canvas: tuple[int, int],
    max_proposals: int = 0,
    resize_rule: str = "rounded",
) -> Images:
    """Shapes and types of images."""
    proposals = None
    if max_proposals:
        slots = jax.ShapeDtypeStruct((batch_size, max_proposals), np.bool_)
        proposals = Proposals(
            boxes=jax.ShapeDtypeStruct((*slots.shape, 4), np.float32),
            scores=jax.ShapeDtypeStruct(slots.shape, np.float32),
            valid=slots,
        )
    return Images(
        pixels=jax.ShapeDtypeStruct((batch_size, *canvas, 3), RESIZE_RULES[resize_rule]),
        sizes=jax.ShapeDtypeStruct((batch_size, 2), np.int32),
        scales=jax.ShapeDtypeStruct((batch_size,), np.float32),
        proposals=proposals,
    )


def _read_safetensors(path: Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            return metadata, {name: file.get_tensor(name) for name in file.keys()}
    except Exception as error:  # Its own, the system's, and NumPy's of what it has no type for.
        raise UserError(f"{path}: cannot be read as a .safetensors file: {_line(error)}") from None


def _parse(text: str, path: Path) -> dict[str, Any]:
    """The JSON, of which nothing is known but the format's number."""
    try:
        values = json.loads(text)
        json.dumps(values)  # What is nested too deeply for the one may not be for the other.
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: metadata: not JSON: {_line(error)}") from None
    if not isinstance(values, dict) or not nested.fits(values.get("format"), int):
        raise UserError(f"{path}: metadata: format wants int, found {str(values)[:MAX_REASON]}")
    return values


def _open(
    values: Mapping[str, Any], leaves: Mapping[str, np.ndarray], path: Path
) -> tuple[Contents, Detector]:
    """Builds the detector that the JSON describes, and checks that the leaves are its."""
    fields = _check_fields(values, path)
    fields["settings"] = settings = moved(fields["settings"])
    name, names = fields["detector"], fields["class_names"]
    for module in _own_modules(settings):
        if module.partition(":")[0] not in sys.modules:
            raise UserError(f"{path}: it uses the module {module!r}: import that before it is read")
    try:
        detector = detectors.build(name, num_classes=len(names), **settings)
        sides = fields["canvas"], fields["max_proposals"]
        images = blank_images(1, *sides, fields["resize_rule"])
        shapes = jax.eval_shape(detector.init, jax.random.key(0), images)
    except Exception as error:  # Settings that do not work fail wherever they are used.
        raise UserError(f"{path}: {name}: {_line(error)}") from error
    wanted = {leaf: _describe(shape) for leaf, shape in flatten_dict(shapes, sep="/").items()}
    found = {leaf: _describe(array) for leaf, array in leaves.items()}
    for leaf in [*wanted, *sorted(found)]:
        want, have = wanted.get(leaf, "nothing"), found.get(leaf, "nothing")
        if want != have:
            raise UserError(
                f"{path}: {leaf}: the {name} of its settings with {len(names)} classes wants "
                f"{want}, found {have}"
            )
    for leaf, array in leaves.items():
        check_leaf(leaf, array, array.dtype, where=f"{path}: {leaf}")
    return Contents(**fields, variables=unflatten_dict(dict(leaves), sep="/")), detector


def _check_prediction(contents: Contents, detector: Detector, path: Path) -> None:
    """Lets the detector meet the settings that only prediction takes; that costs a second."""
    sides = contents.canvas, contents.max_proposals
    images = blank_images(1, *sides, contents.resize_rule)
    try:
        jax.eval_shape(detector.predict, contents.variables, images)
    except Exception as error:  # As of `init`.
        raise UserError(f"{path}: {contents.detector}: {_line(error)}") from error


def _check_fields(values: Mapping[str, Any], path: Path) -> dict[str, Any]:
    values = LATER | UNSAID | dict(values)
    for key in [*values, *TEXT_TYPES]:
        if key not in values or key not in TEXT_TYPES:
            mistake = "not known" if key in values else "missing"
            raise UserError(f"{path}: metadata: {key} is {mistake}")
    fields = {key: nested.with_tuples(values[key]) for key in TEXT_TYPES}
    for key, value in fields.items():
        if not nested.fits(value, TEXT_TYPES[key]):
            wanted = nested.written(TEXT_TYPES[key])
            raise UserError(f"{path}: metadata: {key} wants {wanted}, found {value!r}")
    if fields["resize_rule"] not in RESIZE_RULES:
        known, rule = ", ".join(RESIZE_RULES), fields["resize_rule"]
        raise UserError(f"{path}: metadata: resize_rule wants one of {known}; found {rule!r}")
    short, long = fields["resize"]
    canvases = fields["canvas"], *fields["more_canvases"]
    least = min(*sum(canvases, ()), np.min(short, initial=long), np.size(short))
    if least < 1 or fields["max_proposals"] < 0:
        keys = ("canvas", "more_canvases", "resize", "max_proposals")
        sides = {key: fields[key] for key in keys if fields[key] != UNSAID.get(key, ...)}
        raise UserError(f"{path}: metadata: wanted sides of at least a pixel, found {sides}")
    names, numbers = fields["class_names"], fields["category_ids"]
    if not names or len(set(names)) < len(names):
        raise UserError(f"{path}: metadata: class_names wants different names, found {names}")
    if numbers is not None and len(numbers) != len(names):
        raise UserError(
            f"{path}: metadata: category_ids wants one for each of {len(names)} classes, "
            f"found {len(numbers)}"
        )
    return {key: fields[key] for key in Contents._fields if key in fields}


def _own_modules(settings: Mapping[str, Any]) -> Iterator[str]:
    """The names of modules that are not jaxdet's: "package.module:Class"."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _own_modules(value)
        elif key == "name" and ":" in str(value):
            yield str(value)


def _digest(values: Mapping[str, Any], leaves: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode())
    for name in sorted(leaves):
        digest.update(f"\n{name} {_describe(leaves[name])}\n".encode())
        digest.update(leaves[name].tobytes())
    return digest.hexdigest()


def _describe(leaf: Any) -> str:
    return f"{tuple(leaf.shape)} {leaf.dtype}"


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:MAX_REASON]
