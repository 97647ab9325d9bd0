"""Numbers of steps that a config says in epochs: "12 epochs"."""

import re
from collections.abc import Mapping
from typing import Any

from jaxdet.types import UserError

_EPOCHS = re.compile(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*epochs?\s*")


def in_epochs(value: Any, path: str) -> float | None:
    """The epochs that a text says; None for what is no text.

    Raises:
        UserError: for a text that says something else.
    """
    if not isinstance(value, str):
        return None
    found = _EPOCHS.fullmatch(value)
    if found is None:
        raise UserError(f'config.{path} wants steps, or such as "12 epochs"; found {value!r}')
    return float(found[1])


def wants_epochs(config: Mapping[str, Any], tree: Mapping[str, Any]) -> bool:
    """Whether a length of a completed config is said in epochs."""
    return _map_lengths(config, tree, lambda epochs: 0) != config


def resolve(config: Mapping[str, Any], tree: Mapping[str, Any], num_images: int) -> dict[str, Any]:
    """A completed config with all lengths in steps.

    An epoch has as many steps as there are whole batches in the images, so that
    its ends are also the ends of what is made of epochs; parts of one are rounded.

    Args:
        config: nested settings, with all keys.
        tree: the keys, from `schema.describe`.
        num_images: images to learn from.
    """
    epoch = max(num_images // config["batch_size"], 1)

    def steps(epochs: float) -> int:
        return max(round(epochs * epoch), int(epochs > 0))

    return _map_lengths(config, tree, steps)


def _map_lengths(config, tree, steps, path=""):
    def change(value, place):
        if isinstance(value, tuple):
            return tuple(change(each, place) for each in value)
        epochs = in_epochs(value, place)
        return value if epochs is None else steps(epochs)

    found = dict(config)
    for name, key in tree.items():
        if isinstance(key, Mapping):
            found[name] = _map_lengths(config[name], key, steps, f"{path}{name}.")
        elif key.is_length:
            found[name] = change(config[name], f"{path}{name}")
    return found
