"""Measures the memory of 10,000 steps of the loader, and counts the programs that they need.

    python benchmarks/loader_memory.py [--steps=10000] [--every=500] [--out=FILE]

The pictures are drawn: 512 small JPEGs of aspects from 1:4 to 4:1, with 0 to 300 objects. Batches
of 4 are made on three canvases, lying, upright and square, flipped, zoomed and recoloured, with
up to 100 objects each, by four threads, and go through a jitted function that counts how often
it is traced: once for each canvas. Resident memory is the process's, as Linux says it.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import jax
import numpy as np

from jaxdet.data.pipeline import train_batches
from jaxdet.types import Batch, Example

PICTURES, MOST_OBJECTS, AREA = 512, 300, 72 * 72
SETTINGS = {
    "batch_size": 4,
    "seed": 0,
    "canvas": (64, 128),
    "more_canvases": ((128, 64), (96, 96)),
    "resize": ((64, 80, 96), 128),
    "max_boxes": 100,
    "num_threads": 4,
    "zoom_range": (0.7, 1.4),
    "brightness": 0.2,
    "saturation": 0.2,
}


class Drawn:
    """A source of pictures that are kept as the bytes of their files."""

    class_names = ("object",)

    def __init__(self, seed: int = 0):
        """Draws them."""
        self._examples = [_draw(np.random.default_rng((seed, k)), k) for k in range(PICTURES)]

    def __len__(self) -> int:
        """The number of pictures."""
        return len(self._examples)

    def __getitem__(self, index: int) -> Example:
        """A picture with its objects."""
        return self._examples[index]

    def annotations(self) -> list[Example]:
        """All of them without the pictures."""
        return [example._replace(image=b"") for example in self._examples]


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--every", type=int, default=500)
    parser.add_argument("--out", type=Path)
    flags = parser.parse_args()
    lines = []
    for line in measure(flags.steps, flags.every):
        print(line, flush=True)
        lines.append(line)
    if flags.out:
        flags.out.write_text("\n".join(lines) + "\n")


def measure(steps: int, every: int) -> Iterator[str]:
    """Makes the batches; gives a line for every so many, and one about all."""
    traced = []

    @jax.jit
    def look(batch: Batch) -> jax.Array:
        traced.append(batch.images.pixels.shape[1:3])
        return batch.valid.sum()

    batches, start, kept = train_batches(Drawn(), **SETTINGS), time.perf_counter(), []
    objects, met = 0, {}
    yield " steps  resident MB   objects  programs  batches on each canvas"
    for step in range(1, steps + 1):
        batch = next(batches)
        canvas = batch.images.pixels.shape[1:3]
        met[canvas] = met.get(canvas, 0) + 1
        objects += int(look(batch))
        if step % every == 0:
            kept.append(resident())
            each = ", ".join(f"{h} x {w}: {n}" for (h, w), n in sorted(met.items()))
            yield f"{step:>6}  {kept[-1]:>11.1f}  {objects:>8}  {len(traced):>8}  {each}"
    batches.close()
    half = kept[len(kept) // 2 :]
    yield (
        f"{steps} steps of {SETTINGS['batch_size']} images in "
        f"{time.perf_counter() - start:.0f} s; in their second half the resident memory is "
        f"{min(half):.1f} to {max(half):.1f} MB; {len(traced)} programs for {len(met)} canvases"
    )


def resident() -> float:
    """Resident memory of this process in MB."""
    text = Path("/proc/self/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0]) / 1024


def _draw(rng: np.random.Generator, number: int) -> Example:
    """Every seventh has no object, and as many have 300."""
    aspect = np.exp(rng.uniform(-1, 1) * np.log(4))
    height, width = round((AREA / aspect) ** 0.5), round((AREA * aspect) ** 0.5)
    pixels = cv2.resize(rng.integers(0, 256, (8, 8, 3), np.uint8), (width, height))
    count = {0: 0, 1: MOST_OBJECTS}.get(number % 7, int(rng.integers(MOST_OBJECTS + 1)))
    corners = rng.uniform(0, 1, (count, 2)) * [width - 8, height - 8]
    boxes = np.concatenate([corners, corners + rng.uniform(2, 8, (count, 2))], axis=1)
    none = np.zeros(count, bool)
    return Example(
        id=number,
        image=cv2.imencode(".jpg", pixels)[1].tobytes(),
        boxes=boxes.astype(np.float32),
        labels=np.zeros(count, np.int32),
        crowd=none,
        difficult=none,
        area=np.prod(boxes[:, 2:] - boxes[:, :2], axis=1),
        size=(height, width),
    )


if __name__ == "__main__":
    main()
