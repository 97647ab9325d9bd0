"""Runs a file of JAX on images where there are NumPy and JAX alone: FILE IN.npz OUT.npz."""

import json
import pathlib
import sys

import jax.export
import numpy as np

sys.modules |= dict.fromkeys(["jaxdet", "flax", "cv2", "onnx"])  # Importing one of these fails.
program, source, target = sys.argv[1:]
call = jax.export.deserialize(bytearray(pathlib.Path(program).read_bytes())).call
names = json.loads(pathlib.Path(program + ".json").read_text())["class_names"]
results = {}
for name, pixels in np.load(source).items():
    results |= {f"{name}/{place}": output for place, output in enumerate(call(pixels))}
np.savez(target, names=names, **results)
