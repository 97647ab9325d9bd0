"""Counts what a detector is made of, and what a step and a prediction cost.

    jaxdet summary --config=FILE [--batch_size=N] [--device_memory=16GB] [--memory] [--json]
    jaxdet summary MODEL [--batch_size=N] [--device_memory=16GB] [--memory] [--json]

MODEL is a model.safetensors, or the folder of a run. There are parameters by part, the
levels with their anchors or grid points, FLOPs, bytes, and the largest batch of a device
that fits into a memory of --device_memory, or of the device at hand where that knows.

FLOPs are XLA's count of the program as a TPU would get it, for one image of the canvas: a
multiplication and an addition are two, and the body of a loop (suppression, RoI pooling)
counts once. Activations, what the forward pass of a step keeps for the gradient, are an
estimate from the traced program. With --memory both programs are compiled for the device
at hand, and their temporaries added: that takes from seconds to many minutes. The memory
of a step is that of the largest images it may train on: of several canvases, or of the
heights of multiscale_heights. A config that names no classes needs its data, or
--num_classes.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax

from jaxdet import model_file
from jaxdet.commands import command_line, config_files, costs, ending, memory, opening
from jaxdet.commands.costs import Subject
from jaxdet.commands.text_table import align
from jaxdet.training import steps
from jaxdet.types import UserError

# Of an epoch: a step costs the same however many there are, and steps fit an int32.
SOME_IMAGES = 100_000
LARGEST = 5  # Activations that are listed.
NAMED = {"prediction": "prediction", "step": "training step"}


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Runs the command."""
    argv = list(argv or sys.argv)
    model = argv.pop(1) if len(argv) > 1 and not argv[1].startswith("-") else ""
    with ending.in_one_line(argv):
        subject, flags = _open(argv, model)
        given = flags.device_memory
        device_memory = memory.read_bytes(given) if given else memory.memory_at_hand()
        found = measure(subject, compiled=flags.memory, device_memory=device_memory)
        print(json.dumps(found, indent=2) if flags.json else format_tables(found))
        sys.exit(0)


def measure(
    subject: Subject, *, compiled: bool = False, device_memory: int | None = None
) -> dict[str, Any]:
    """All numbers, in bytes and single FLOPs, which can be written as JSON.

    Args:
        subject: what is measured.
        compiled: whether programs are compiled, to know their temporaries.
        device_memory: bytes of a device, for the batch that fits; None where it is not known.

    Returns:
        Under "levels" null for a detector that does not tell its candidates;
        no numbers of a training step where there is no run; null FLOPs where
        JAX has no CPU to count them. FLOPs and predictions are of images of "canvas",
        the memory of a step is that of "step_canvas".
    """
    traces = {"prediction": costs.trace_prediction}
    if subject.run is not None:
        traces["step"] = costs.trace_step
    largest = None if subject.run is None else costs.step_canvas(subject.run.config)
    sizes = {name: memory.known_bytes(subject, name, largest) for name in traces}
    found = {
        "detector": subject.name,
        "num_classes": subject.num_classes,
        "canvas": list(subject.images(1).pixels.shape[1:3]),
        "batch_size": subject.batch_size,
        "parameters": costs.parameters(subject),
        "levels": costs.levels(subject),
        "flops": {name: costs.count_flops(trace, subject) for name, trace in traces.items()},
        "bytes": sizes,
    }
    if subject.run is not None:
        found |= {"step_canvas": list(largest), "accumulate": subject.run.config.accumulate}
        kept = memory.kept_for_backward(subject, subject.batch_size, largest)
        sizes["step"]["activations"] = sum(each.bytes for each in kept)
        found["largest"] = [each._asdict() for each in kept[:LARGEST]]
    if compiled:
        found["backend"] = jax.default_backend()
        for name in traces:
            temporaries = memory.temporary_bytes(subject, name, largest)
            if temporaries is not None:
                sizes[name]["temporaries"] = temporaries
    if device_memory is not None:
        fits = {
            name: memory.largest_batch(
                sizes[name], subject.batch_size, device_memory, accumulate=_parts(found, name)
            )
            for name in traces
        }
        found |= {"device_memory": device_memory, "fits": fits}
    return found


def format_tables(found: Mapping[str, Any]) -> str:
    """The numbers of `measure` as text."""
    height, width = found["canvas"]
    lines = [
        f"{found['detector']}, {found['num_classes']} classes, canvas {height} x {width}, "
        f"batches of {found['batch_size']}",
        "",
    ]
    lines += align(
        ("part", "parameters", "trainable", "statistics"),
        [
            (name, *(f"{count:,}" for count in part.values()))
            for name, part in found["parameters"].items()
        ],
    )
    if found["levels"]:
        maps = found["levels"]["maps"]
        rows = [(str(m["stride"]), _by(m["cells"]), f"{m['count']:,}") for m in maps]
        rows.append(("all", "", f"{sum(each['count'] for each in maps):,}"))
        lines += ["", *align(("stride", "cells", found["levels"]["kind"]), rows)]
    rows = [
        (NAMED[name], "not counted" if count is None else f"{count / 1e9:,.2f} G")
        for name, count in found["flops"].items()
    ]
    lines += ["", *align(("FLOPs", f"an image of {height} x {width}"), rows)]
    return "\n".join([*lines, "", *_format_memory(found)])


def _format_memory(found: Mapping[str, Any]) -> Iterator[str]:
    size = found["batch_size"]
    columns = {
        f"{NAMED[name]} of {size}{_at(found, name)}": sizes
        for name, sizes in found["bytes"].items()
    }
    kinds = max(columns.values(), key=len)
    rows = [(kind, *(_megabytes(s.get(kind)) for s in columns.values())) for kind in kinds]
    rows.append(("all", *(_megabytes(memory.total(s)) for s in columns.values())))
    yield from align(("memory", *columns), rows)
    if "backend" in found:
        kept = f", and so is a {memory.KEPT}" if memory.KEPT in kinds else ""
        yield f"temporaries as compiled for {found['backend']}; gradients and activations are"
        yield f"among them, and count once{kept}"
    else:
        yield "without temporaries: --memory compiles and adds them; activations are an estimate"
    if found.get("largest"):
        rows = [
            (each["place"], _by(each["shape"]), each["dtype"], _megabytes(each["bytes"]))
            for each in found["largest"]
        ]
        yield ""
        yield from align(("largest activations", "shape", "type", "memory"), rows)
    for name, count in found.get("fits", {}).items():
        if count is not None:
            yield ""
            yield _format_fit(found, name, count)


def _format_fit(found: Mapping[str, Any], name: str, count: int) -> str:
    size = f"a device of {found['device_memory'] / 1e9:,.1f} GB, {memory.SPARE:.0%} of it left free"
    what = NAMED[name] + _at(found, name)
    if not count:
        return f"{what}: not even a batch of {_parts(found, name)} fits {size}"
    return f"{what}: batches of up to {count} fit {size}"


def _at(found: Mapping[str, Any], name: str) -> str:
    """The size at which a step is measured, where that is not the canvas."""
    sides = found["step_canvas"] if name == "step" else found["canvas"]
    return "" if sides == found["canvas"] else f" at {_by(sides)}"


def _parts(found: Mapping[str, Any], name: str) -> int:
    return found["accumulate"] if name == "step" else 1


def _by(sides: Sequence[int]) -> str:
    return " x ".join(map(str, sides))


def _megabytes(count: int | None) -> str:
    return "" if count is None else f"{count / 2**20:,.1f} MiB"


def _open(argv: list[str], model: str) -> tuple[Subject, argparse.Namespace]:
    """What the command line names: a config, a run, or a model file."""
    path = Path(model).expanduser()
    if model and path.is_dir() and not (path / config_files.SAVED_NAME).is_file():
        path = path / model_file.NAME  # A folder to which only the model was taken.
    if model and not path.is_dir():
        parser = ending.Parser(argv[0], __doc__)
        parser.add_argument("--debug", action="store_true")
        _define_flags(parser)
        flags = parser.parse_args(argv[1:])
        return _from_model(path, _check(1 if flags.batch_size is None else flags.batch_size)), flags
    named = [f"--workdir={path}"] if model else []
    config, _, flags = command_line.read(
        [argv[0], *named, *argv[1:]], usage=__doc__, define=_define_flags
    )
    if flags.num_classes and not config.data.classes:
        config.data.classes = tuple(f"class {k}" for k in range(flags.num_classes))
    size = config.batch_size if flags.batch_size is None else flags.batch_size
    return _from_config(config, _check(size)), flags


def _from_model(path: Path, batch_size: int) -> Subject:
    contents, detector = model_file.read(path)
    return Subject(
        name=contents.detector,
        num_classes=len(contents.class_names),
        detector=detector,
        variables=jax.eval_shape(lambda: contents.variables),
        images=lambda count: model_file.blank_images(
            count, contents.canvas, contents.max_proposals, contents.resize_rule
        ),
        batch_size=batch_size,
    )


def _from_config(config: Any, batch_size: int) -> Subject:
    one = jax.local_devices()[:1]  # The batch is that of a device.
    steps.check_division(batch_size, one, accumulate=config.accumulate)
    run = opening.open_run(config)
    config = opening.in_likely_steps(config, SOME_IMAGES)
    run = opening.with_optimizer(run._replace(config=config))
    return Subject(
        name=config.detector,
        num_classes=len(run.class_names),
        detector=run.detector,
        variables=run.variables,
        images=lambda count: opening.blank_images(config, count),
        batch_size=batch_size,
        run=run,
    )


def _check(batch_size: int) -> int:
    if batch_size < 1:
        raise UserError(f"--batch_size wants at least 1, found {batch_size}")
    return batch_size


def _define_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--batch_size", type=int, metavar="N", help="images on a device; the config's, or 1")
    add("--num_classes", type=int, metavar="K", help="of a config that names none, without data")
    add(
        "--device_memory",
        metavar="BYTES",
        help="of a device, such as 16GB or 80GiB: say which batch fits; that of the one at hand",
    )
    add("--memory", action="store_true", help="compile, and add what temporaries take")
    add("--json", action="store_true", help="print JSON, in bytes and single FLOPs")
