"""Times the input of a training: how many images a second come off one thread.

    python benchmarks/input.py [--picture=480x640] [--threads=1] [--beside=torch]

JPEG pictures of 480 x 640, decoded, resized, flipped and padded to 320 x 480 and to 800 x 1344,
and mosaics of four; beside OpenCV alone, which decodes and resizes, and beside torchvision's
`decode_jpeg` and v2 transforms, whose Python needs OpenCV, too, to draw the pictures. A call makes
all of its batches and none of the next one's, and OpenCV has no threads of its own.
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
    add("--picture", type=detectors.read_size, default=(480, 640), metavar="HxW")
    add("--batch", type=int, default=8, help="images of a batch (8)")
    add("--batches", type=int, default=16, help="of a call (16)")
    add("--threads", type=int, default=1, help="of each side but OpenCV (1)")
    harness.add_flags(parser)
    flags = parser.parse_args()
    measured = []
    for target in ("small", "large"):
        case = {
            "work": "batches",
            "size": flags.picture,
            "target": target,
            "batch": flags.batch,
            "count": flags.batches,
            "threads": flags.threads,
        }
        sides = [
            Side("jaxdet", "side_input.py", case),
            Side("opencv", "side_input.py", case | {"work": "opencv"}),
            Side("jaxdet, mosaics", "side_input.py", case | {"mosaic": 1.0}),
        ]
        if flags.beside:
            sides.append(Side("torch", "side_torch.py", case, flags.torch_python))
        name = f"{target}, {flags.batches} batches of {flags.batch}"
        measured += [(name, each) for each in harness.compare(sides, rounds=flags.rounds)]
    harness.keep(flags.json, measured)
    print(harness.table(measured, units="images"))


if __name__ == "__main__":
    main()
