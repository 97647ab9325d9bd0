"""Reads and writes files of weights: arrays under the names that they have in the file."""

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import load_file as load_safetensors
from safetensors.numpy import save as write_safetensors

from jaxdet import whole_files
from jaxdet.types import UserError

# Keys under which training scripts keep the weights beside other things.
WRAPPERS = ("state_dict", "model", "model_state_dict", "ema")
KEYS_SHOWN = 5  # Enough of a torch file to see what it is.
# Where mmdetection keeps the names of the classes: below "meta", in versions up to 2 and since.
CLASS_NAMES = (("CLASSES",), ("dataset_meta", "CLASSES"), ("dataset_meta", "classes"))
# Types of arrays of objects, text, times and complex numbers.
NO_NUMBERS = "OSUMmc"
# Put before every name by torch's DataParallel.
PARALLEL_PREFIX = "module."


class Weights(NamedTuple):
    """What a file of weights holds.

    Attributes:
        tensors: its arrays, with torch's names and layouts.
        class_names: name of each label as mmdetection's files say them, else None.
    """

    tensors: dict[str, np.ndarray]
    class_names: tuple[str, ...] | None = None


def load_file(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The arrays of a file; see `read_file`."""
    return read_file(path).tensors


def read_file(path: str | os.PathLike) -> Weights:
    """Reads a .npz, .safetensors, .pth or .pt file.

    Weights that lie under one of `WRAPPERS` in a torch file are taken out, and
    the prefix "module." is dropped. Torch files are read as plain tensors;
    nothing in them is executed. How many have a key that is no text, and are
    left out, is logged.

    Raises:
        UserError: if there is no such file, its ending is another one, it
            cannot be read, has odd tensors or one twice, is a torch file without
            any, or torch is wanted and not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file of weights")
    if path.suffix not in READERS:
        raise UserError(f"{path}: wanted a file ending in {', '.join(READERS)}")
    weights, tensors = READERS[path.suffix](path), {}
    for name, value in weights.tensors.items():
        if value.dtype.kind in NO_NUMBERS:
            raise UserError(f"{path}: {name} wants numbers, found {value.dtype}")
        short = name.removeprefix(PARALLEL_PREFIX)
        if short in tensors:
            raise UserError(f"{path}: wants {short} once, found {PARALLEL_PREFIX}{short}, too")
        tensors[short] = value
    return weights._replace(tensors=tensors)


def save_file(path: str | os.PathLike, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes a .npz, .safetensors, .pth or .pt file, in one move: a kill leaves the old or none.

    Args:
        path: of the file.
        tensors: arrays by name.

    Raises:
        UserError: if the ending is another one, or torch is wanted and not installed.
    """
    path = Path(path)
    if path.suffix not in READERS:
        raise UserError(f"{path}: wanted a file ending in {', '.join(READERS)}")
    tensors = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    with whole_files.replacing(path) as half:
        if path.suffix == ".npz":
            with half.open("wb") as file:
                np.savez(file, **tensors)
        elif path.suffix == ".safetensors":
            half.write_bytes(write_safetensors(tensors))
        else:
            torch = _import_torch(path, "writing")
            torch.save({name: torch.from_numpy(value) for name, value in tensors.items()}, half)


def _read_npz(path: Path) -> Weights:
    try:
        with path.open("rb") as file:  # np.load leaves a damaged file open.
            arrays = np.load(file, allow_pickle=False)
            if isinstance(arrays, np.ndarray):
                raise ValueError("it holds one array without a name; np.savez writes names")
            tensors = dict(arrays)
            for name, value in tensors.items():
                if not isinstance(value, np.ndarray):  # The bytes of any other file.
                    raise ValueError(f"{name} in it is no array")
            return Weights(tensors)
    except Exception as error:  # Whatever NumPy and its libraries meet in a damaged file.
        raise _unreadable(path, "a NumPy .npz archive", error) from error


def _read_safetensors(path: Path) -> Weights:
    try:
        return Weights(load_safetensors(path))
    except Exception as error:  # Its own, the system's, and NumPy's of what it has no type for.
        raise _unreadable(path, "a .safetensors file", error) from error


def _read_torch(path: Path) -> Weights:
    torch = _import_torch(path, "reading")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever its unpickler meets.
        raise UserError(
            f"{path}: cannot be read as torch tensors, and nothing else is unpickled; "
            "if there is more in it, save its state_dict alone"
        ) from error
    class_names = _class_names(content)
    for wrapper in 2 * WRAPPERS:  # One may lie in another.
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: wanted a dictionary of tensors; found {type(content).__name__}")
    tensors = {key: value for key, value in content.items() if torch.is_tensor(value)}
    named = {key: value for key, value in tensors.items() if isinstance(key, str)}
    if not named:
        keys = [*map(repr, list(content)[:KEYS_SHOWN]), *["..."] * (len(content) > KEYS_SHOWN)]
        raise UserError(
            f"{path}: wanted tensors by their names, alone or under {', '.join(WRAPPERS)}; found "
            + (f"the keys {', '.join(keys)}" if keys else "nothing")
        )
    if len(named) < len(tensors):
        logging.getLogger("jaxdet").warning(
            "%s: %d of %d tensors left out, whose keys are no text, such as %r",
            *(path, len(tensors) - len(named), len(tensors), next(iter(tensors.keys() - named))),
        )
    arrays = {name: _to_numpy(value, f"{path}: {name}") for name, value in named.items()}
    return Weights(arrays, class_names)


def _class_names(content: Any) -> tuple[str, ...] | None:
    """The names of the classes, where a file says them as mmdetection does."""
    for path in CLASS_NAMES:
        found = content
        for key in ("meta", *path):
            found = found.get(key) if isinstance(found, Mapping) else None
        if isinstance(found, list | tuple) and found and all(isinstance(n, str) for n in found):
            return tuple(found)
    return None


def _import_torch(path: Path, doing: str) -> Any:
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f'{path}: {doing} {path.suffix} needs torch: pip install "jaxdet[torch]"'
        ) from error
    return torch


def _to_numpy(tensor: Any, where: str) -> np.ndarray:
    try:
        # NumPy has no bfloat16, and float32 holds each of torch's smaller floats.
        return (tensor.float() if tensor.is_floating_point() else tensor).detach().numpy()
    except Exception as error:  # Whatever torch says of sparse, quantised and empty ones.
        kind = f"{tensor.dtype} {tensor.layout}".replace("torch.", "")
        raise UserError(f"{where} wants a plain tensor, found {kind} on {tensor.device}") from error


def _unreadable(path: Path, wanted: str, error: Exception) -> UserError:
    reason = str(error).strip().splitlines() or [type(error).__name__]
    return UserError(f"{path}: cannot be read as {wanted}: {reason[0]}")


READERS: dict[str, Callable[[Path], Weights]] = {
    ".npz": _read_npz,
    ".safetensors": _read_safetensors,
    ".pth": _read_torch,
    ".pt": _read_torch,
}
