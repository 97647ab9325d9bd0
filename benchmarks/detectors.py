"""The sides of a benchmark of whole detectors, and its command line."""

import argparse
import sys

import harness
from harness import Side

MODELS = ("faster_rcnn", "retinanet", "yolox")


def main(work: str, usage: str, argv: list[str] | None = None) -> None:
    """Measures one work of some detectors, and prints the table.

    Args:
        work: of the sides' scripts, "train_step" or "predict".
        usage: what --help says.
        argv: the flags.
    """
    flags = _read(usage, argv)
    measured = []
    for model in flags.models:
        case = {
            "work": work,
            "model": model,
            "batch": flags.batch,
            "size": flags.size,
            "dtype": flags.dtype,
        }
        ours = case | {"settings": flags.settings}
        sides = [Side("jaxdet", "side_jaxdet.py", ours)]
        if flags.beside:
            sides += _peers(flags, case)
        name = f"{model} {flags.batch} x {flags.size[0]} x {flags.size[1]} {flags.dtype}"
        own = [(name, each) for each in harness.compare(sides, rounds=flags.rounds)]
        measured += own
        harness.keep(flags.json, measured)  # What is measured stays, whatever comes next.
        print(harness.table(own, units="images"), flush=True)


def read_size(text: str) -> tuple[int, int]:
    """Height and width of such as "320x480"."""
    height, _, width = text.partition("x")
    return int(height), int(width)


def add_size_flags(
    parser: argparse.ArgumentParser,
    *,
    size: tuple[int, int] = (320, 480),
    dtype: str = "float32",
) -> None:
    """What every benchmark of a whole detector is told; with its defaults."""
    add = parser.add_argument
    add("--size", type=read_size, default=size, metavar="HxW", help="of the canvas")
    add("--batch", type=int, default=2, help="images of a call (2)")
    add("--dtype", choices=("float32", "bfloat16"), default=dtype, help="of the networks")
    add("--settings", nargs="*", default=[], metavar="KEY=VALUE", help="of jaxdet's config")


def _peers(flags, case):
    """Torch as it is, and with its compiled backbone where that is asked for."""
    if case["model"] == "yolox":
        if not flags.yolox_code:
            print("yolox has no peer without --yolox_code", file=sys.stderr)
            return []
        case = case | {"code": flags.yolox_code}
    peer = Side("torch", "side_torch.py", case, flags.torch_python)
    if not flags.compiled:
        return [peer]
    compiled = peer._replace(name="torch.compile", case=case | {"compiled": True})
    return [peer, compiled]


def _read(usage, argv):
    parser = argparse.ArgumentParser(
        description=usage, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("models", nargs="*", metavar="MODEL", help=f"of {', '.join(MODELS)}; all of them")
    add_size_flags(parser)
    add("--compiled", action="store_true", help="torch.compile of the backbone, too")
    harness.add_flags(parser)
    flags = parser.parse_args(argv)
    unknown = sorted(set(flags.models) - set(MODELS))
    if unknown:
        parser.error(f"no model {unknown[0]!r}; there are {', '.join(MODELS)}")
    flags.models = flags.models or MODELS
    return flags
