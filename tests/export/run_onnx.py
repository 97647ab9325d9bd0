"""Runs an ONNX file on images where there are NumPy and onnxruntime alone: FILE IN.npz OUT.npz."""

import json
import sys

import numpy as np
import onnxruntime

sys.modules |= dict.fromkeys(["jaxdet", "jax", "cv2", "onnx"])  # Importing one of these fails.
program, source, target = sys.argv[1:]
session = onnxruntime.InferenceSession(program, providers=["CPUExecutionProvider"])
names = json.loads(session.get_modelmeta().custom_metadata_map["class_names"])
results = {}
for name, pixels in np.load(source).items():
    outputs = session.run(["boxes", "scores", "labels", "valid"], {"pixels": pixels})
    results |= {f"{name}/{place}": output for place, output in enumerate(outputs)}
np.savez(target, names=names, **results)
