"""What a step and a prediction need of a device's memory, and the batch that fits."""

import math
import re
from collections.abc import Mapping
from typing import Any

import jax

from jaxdet.commands import costs, opening, residuals
from jaxdet.commands.costs import Subject
from jaxdet.commands.residuals import Kept
from jaxdet.types import UserError

# What a step began with, where it may be left out: it waits until the step's numbers are known
# to be finite. All of it counts, though a compiler may give it room that activations leave.
KEPT = "kept state"
# They lie within the compiled temporaries.
WITHIN = ("gradients", "activations", KEPT)
# Of the device's memory, what is not counted on: estimates were up to 12 % below what a
# compiler planned (docs/look.md), and memory comes in blocks.
SPARE = 0.15
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
BINARY = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def known_bytes(
    subject: Subject, name: str, canvas: tuple[int, int] | None = None
) -> dict[str, int]:
    """Bytes by kind, of what is known without compiling.

    Args:
        subject: what is measured.
        name: "prediction" or "step".
        canvas: of a step's images; by default the first.
    """
    weights = {
        "parameters": _size(subject.variables["params"]),
        "statistics": _size(subject.variables.get("batch_stats", {})),
    }
    if name == "prediction":
        return {**weights, "images": _size(subject.images(subject.batch_size))}
    counts, start = costs.parameters(subject)["all"], costs.first_state(subject.run)
    share = counts["trainable"] / counts["total"]
    copies = 2 if subject.run.config.accumulate > 1 else 1  # Of a part, beside their sum.
    guarded = costs.settings_of_step(subject.run)["guarded"]
    return {
        **weights,
        "averages": _size(start.ema),
        "gradients": round(share * weights["parameters"]) * copies,
        "optimizer": _size(start.opt_state),
        **({KEPT: _size(start)} if guarded else {}),
        "images": _size(opening.blank_batch(subject.run.config, subject.batch_size, canvas)),
    }


def kept_for_backward(
    subject: Subject, count: int, canvas: tuple[int, int] | None = None
) -> list[Kept]:
    """What the forward pass of a step on `count` images keeps for the gradient: an estimate.

    They are of a canvas, by default the first. Of `config.accumulate` parts it is one at a time.
    """
    run, variables = subject.run, subject.variables
    rest = {name: part for name, part in variables.items() if name != "params"}

    def loss(params: Any, constants: Any) -> Any:
        rest, batch = constants
        variables, key = {"params": params, **rest}, jax.random.key(0)
        return run.detector.loss(variables, batch, key, final=bool(run.config.final_steps))

    batch = opening.blank_batch(run.config, -(-count // run.config.accumulate), canvas)
    return residuals.estimate(loss, variables["params"], (rest, batch))


def temporary_bytes(
    subject: Subject, name: str, canvas: tuple[int, int] | None = None
) -> int | None:
    """What the temporaries take in the program as it is compiled for the device at hand.

    Arguments as for `known_bytes`.
    """
    if name == "step":
        traced = costs.trace_step(subject, subject.batch_size, canvas)
    else:
        traced = costs.trace_prediction(subject, subject.batch_size)
    analysis = traced.lower().compile().memory_analysis()
    return None if analysis is None else analysis.temp_size_in_bytes  # Not every backend has it.


def total(sizes: Mapping[str, int]) -> int:
    """All of it at once: compiled temporaries hold gradients and activations already."""
    within = WITHIN if "temporaries" in sizes else ()
    return sum(size for kind, size in sizes.items() if kind not in within)


def largest_batch(
    sizes: Mapping[str, int], count: int, device_memory: int, *, accumulate: int = 1
) -> int | None:
    """How many images of a batch fit on a device, as far as its memory is linear in them.

    Args:
        sizes: bytes by kind, for `count` images.
        count: of the images.
        device_memory: bytes that the device has, of which `SPARE` stays free.
        accumulate: parts that a batch is taken in: it has a multiple of so many images.

    Returns:
        0 where not even one image a part fits; None where neither activations nor temporaries
        are known.
    """
    if "temporaries" in sizes:
        # The gradients in them are there once; how much of a kept state is, is not known.
        growing = max(sizes["temporaries"] - sizes.get("gradients", 0), 0)
    elif "activations" in sizes:
        growing = sizes["activations"]
    else:
        return None
    growing += sizes["images"]
    once = total(sizes) - growing
    fits = max(0, int(((1 - SPARE) * device_memory - once) * count // growing))
    return fits - fits % accumulate


def read_bytes(text: str) -> int:
    """Bytes of "16GB", "16 GiB" or "17179869184".

    Raises:
        UserError: if it is something else, or nothing.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]?)(i?)B?", text.strip(), re.IGNORECASE)
    count = 0
    if found:
        number, unit, binary = found.groups()
        count = int(float(number) * (BINARY if binary else UNITS)[unit.upper()])
    if count < 1:
        raise UserError(f"--device_memory wants bytes, such as 16GB or 80GiB; found {text!r}")
    return count


def memory_at_hand() -> int | None:
    """Bytes that JAX may take of the first device at hand; None where that does not say."""
    known = jax.local_devices()[0].memory_stats() or {}
    return known.get("bytes_limit")


def _size(tree):
    return sum(math.prod(a.shape) * a.dtype.itemsize for a in jax.tree.leaves(tree))
