"""Errors of the caller, raised while tracing: the annotations are the contract.

The annotations of an op already say which shapes it wants; `check_shapes`
holds the arguments to them. Types may be any, but masks are boolean: of numbers,
`~` and `&` mean something else, and nothing would say so.
"""

import functools
import inspect
import typing
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import AbstractArray, Bool, Shaped, jaxtyped


def check_shapes(function: Callable) -> Callable:
    """Makes a function raise ValueError where an argument has not its annotated shape.

    Also where a mask, which is annotated as `Bool`, is of numbers. A letter that
    occurs in several annotations stands for one number. An argument may be any
    array, tracers and NumPy's included, or a number.

    >>> @check_shapes
    ... def f(boxes: Shaped[np.ndarray, "N 4"], valid: Shaped[np.ndarray, " N"]): ...
    >>> f(np.zeros((3, 4)), np.zeros(2))
    Traceback (most recent call last):
    ValueError: f: valid wants the shape (N), found (2,); before it boxes (3, 4)
    >>> @check_shapes
    ... def g(valid: Bool[np.ndarray, " N"]): ...
    >>> g(np.zeros(2))
    Traceback (most recent call last):
    ValueError: g: valid wants booleans, found float64; as in valid != 0
    """
    signature = inspect.signature(function)
    masks = {
        name for name, parameter in signature.parameters.items() if is_mask(parameter.annotation)
    }
    wanted = {
        name: shape
        for name, parameter in signature.parameters.items()
        if (shape := annotated_shape(parameter.annotation)) is not None
    }

    @functools.wraps(function)
    def checked(*args, **kwargs):
        given = signature.bind(*args, **kwargs).arguments
        seen = []
        with jaxtyped("context"):  # Binds the letters from argument to argument.
            for name, (shape, is_sequence) in wanted.items():
                value = given.get(name)
                for array in value if is_sequence and value is not None else [value]:
                    if array is None:
                        continue
                    if isinstance(array, (int, float)):
                        array = np.asarray(array)
                    found = getattr(array, "shape", type(array).__name__)
                    if not isinstance(array, Shaped[Any, shape]):
                        letters = ", ".join(shape.split())
                        before = f"; before it {', '.join(seen)}" if seen else ""
                        raise ValueError(
                            f"{function.__name__}: {name} wants the shape ({letters}), "
                            f"found {found}{before}"
                        )
                    if name in masks and array.dtype != bool:
                        raise ValueError(
                            f"{function.__name__}: {name} wants booleans, found {array.dtype}; "
                            f"as in {name} != 0"
                        )
                    seen.append(f"{name} {found}")
        return function(*args, **kwargs)

    return checked


def check_fractions(**values: float | None) -> None:
    """Raises ValueError for the first value outside [0, 1]; None passes."""
    for name, value in values.items():
        if value is not None and not 0 <= value <= 1:
            raise ValueError(f"{name} must lie in [0, 1], got {value}")


def check_at_least(lowest: float, **values: float) -> None:
    """Raises ValueError for the first value below `lowest`, NaN included."""
    for name, value in values.items():
        if not value >= lowest:
            raise ValueError(f"{name} must be at least {lowest}, got {value}")


def annotated_shape(annotation: Any) -> tuple[str, bool] | None:
    """The shape string in an annotation, and whether a sequence of such arrays is wanted."""
    if isinstance(annotation, type) and issubclass(annotation, AbstractArray):
        return annotation.dim_str, False
    origin = typing.get_origin(annotation)
    for part in typing.get_args(annotation):
        found = annotated_shape(part)
        if found is not None:
            return found[0], found[1] or (inspect.isclass(origin) and issubclass(origin, Sequence))
    return None


def is_mask(annotation: Any) -> bool:
    """Whether an annotation is of boolean arrays, or of those and None."""
    if isinstance(annotation, type) and issubclass(annotation, AbstractArray):
        return annotation.dtypes == Bool.dtypes
    return any(is_mask(part) for part in typing.get_args(annotation))
