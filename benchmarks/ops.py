"""Times NMS and RoIAlign, alone or beside torchvision's.

    python benchmarks/ops.py [--size=320x480] [--dtype=float32] [--beside=torch]

NMS of 2,000 boxes; RoIAlign of 512 regions over four maps of 256 channels, with two samples an
axis of a bin and with as many as the bin has cells, alone and with its gradient.
"""

import argparse

import detectors
import harness
from harness import Side


def main() -> None:
    """Reads the flags and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--size", type=detectors.read_size, default=(320, 480), metavar="HxW", help="of the image")
    add("--regions", type=int, default=512)
    add("--channels", type=int, default=256)
    add("--boxes", type=int, default=2000)
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the maps")
    harness.add_flags(parser)
    flags = parser.parse_args()
    measured = []
    for name, case in _cases(flags).items():
        sides = [Side("jaxdet", "side_jaxdet.py", case)]
        if flags.beside:
            sides.append(Side("torch", "side_torch.py", case, flags.torch_python))
        measured += [(name, each) for each in harness.compare(sides, rounds=flags.rounds)]
    harness.keep(flags.json, measured)
    print(harness.table(measured))


def _cases(flags):
    found = {f"NMS of {flags.boxes}": {"work": "nms", "count": flags.boxes}}
    for ratio, kind in ((2, "ratio 2"), (0, "adaptive")):
        for gradient in (False, True):
            name = f"RoIAlign {kind}{', gradient' if gradient else ''}"
            found[name] = {
                "work": "roi_align",
                "size": flags.size,
                "regions": flags.regions,
                "channels": flags.channels,
                "ratio": ratio,
                "gradient": gradient,
                "dtype": flags.dtype,
            }
    return found


if __name__ == "__main__":
    main()
