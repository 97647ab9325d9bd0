"""Exports models, runs the files in processes without jaxdet, and lays them beside jaxdet.

    python benchmarks/export.py MODEL... [--images=FOLDER] [--formats=onnx,stablehlo]

Without a folder the images are drawn, of several sizes. Prints a row for each model and
format: how many detections both have, how far boxes (pixels) and scores are apart at most,
and the CPU seconds that an image takes once all is compiled, there and here.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import jaxdet
from jaxdet.commands import export
from jaxdet.data.sources import pictures
from jaxdet.prediction import inputs

SIZES = [(160, 192), (240, 320), (120, 100), (600, 800)]
MOST_IMAGES = 12
NEAR = 0.05  # Pixels.
# Importing jaxdet fails there; seconds are those of the second time that an image is seen.
START = """
import json, pathlib, sys, time
import numpy as np
sys.modules["jaxdet"] = None
program, source, target = sys.argv[1:]
"""
FINISH = """
results, seconds = {}, 0.0
for name, pixels in np.load(source).items():
    run(pixels[None])
    start = time.process_time()
    outputs = [np.asarray(output)[0] for output in run(pixels[None])]
    seconds += time.process_time() - start
    results |= {f"{name}/{place}": output for place, output in enumerate(outputs)}
np.savez(target, seconds=seconds, **results)
"""
RUN = {
    "onnx": """
import onnxruntime
options = onnxruntime.SessionOptions()
# Threads that wait busily would be counted as work.
options.add_session_config_entry("session.intra_op.allow_spinning", "0")
session = onnxruntime.InferenceSession(program, options, providers=["CPUExecutionProvider"])
names = ["boxes", "scores", "labels", "valid"]
def run(pixels): return session.run(names, {"pixels": pixels})
""",
    "stablehlo": """
import jax, jax.export
run = jax.jit(jax.export.deserialize(bytearray(pathlib.Path(program).read_bytes())).call)
""",
}


def draw_images() -> dict[str, np.ndarray]:
    """Generated pictures of several sizes."""
    rng, kinds = np.random.default_rng(0), ("circle", "square", "triangle", "star")
    settings = dict(kinds=kinds, num_objects=8, size_range=(16, 72), max_turn=20.0)
    return {
        f"drawn{i}": pictures.draw_picture(rng, size=size, **settings).image
        for i, size in enumerate(SIZES)
    }


def here(model: Path, images: dict[str, np.ndarray]) -> tuple[dict, float]:
    """What jaxdet finds, and its CPU seconds for all images."""
    predictor = jaxdet.load(model, cache=False)
    predictor(next(iter(images.values())))
    start = time.process_time()
    found = {name: predictor(pixels)[0] for name, pixels in images.items()}
    return found, time.process_time() - start


def elsewhere(to: str, program: Path, images: dict[str, np.ndarray], folder: Path) -> dict:
    """What the file finds in a process of its own."""
    np.savez(folder / "in.npz", **images)
    code = START + RUN[to] + FINISH
    command = [sys.executable, "-c", code, program, folder / "in.npz", folder / "out.npz"]
    subprocess.run(command, check=True, cwd=folder)
    return dict(np.load(folder / "out.npz"))


def compare(found: dict, wanted: dict) -> str:
    """Detections in all, those that both have, and how far these are apart at most.

    Both have it where the labels are the same and the boxes within `NEAR`; scores that are
    equal but for the last bits may have changed places.
    """
    total, same, box_error, score_error = 0, 0, 0.0, 0.0
    for name, image in wanted.items():
        boxes, scores, labels, valid = (found[f"{name}/{place}"] for place in range(4))
        total += max(len(image), valid.sum())
        apart = np.abs(boxes[:, None] - image.boxes).max(axis=-1)
        apart[~valid[:, None] | (labels[:, None] != image.labels)] = np.inf
        # Boxes that are cut off at a border may be the same: the scores tell which is which.
        unlike = apart + 100 * np.abs(scores[:, None] - image.scores)
        nearest, places = unlike.argmin(axis=0), np.arange(len(image))
        both = apart[nearest, places] < NEAR
        same += both.sum()
        box_error = max(box_error, apart[nearest, places][both].max(initial=0))
        score_error = max(score_error, np.abs(scores[nearest] - image.scores)[both].max(initial=0))
    return f"{same} of {total} | {box_error:.1e} | {score_error:.1e}"


def main() -> None:
    """Reads the arguments and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--formats", default="onnx,stablehlo")
    arguments = parser.parse_args()
    images = draw_images()
    if arguments.images:
        paths = inputs.list_files(arguments.images)[:MOST_IMAGES]
        images = {path.stem: inputs.decode(path).image for path in paths}
    print("| model | format | same | boxes | scores | file's CPU s | jaxdet's CPU s |")
    for model in arguments.models:
        wanted, seconds = here(model, images)
        for to in arguments.formats.split(","):
            with tempfile.TemporaryDirectory() as folder:
                program = Path(folder, f"model.{to}")
                export.export(str(model), to, program)
                found = elsewhere(to, program, images, Path(folder))
            times = f"{found['seconds'] / len(images):.3f} | {seconds / len(images):.3f}"
            print(f"| {model} | {to} | {compare(found, wanted)} | {times} |", flush=True)


if __name__ == "__main__":
    main()
