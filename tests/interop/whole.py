"""What the tests of whole detectors share: weights that are drawn, and how numbers are compared.

Maps are compared at every few numbers of theirs, in the order of torch.
"""

import json
import re
from pathlib import Path

import jax
import numpy as np
from scipy.optimize import linear_sum_assignment

from jaxdet.interop import from_torch, to_torch

GOLDENS = Path(__file__).parent.parent / "goldens"
# Float32 noise is a tenth of these: of maps and outputs in their deviations, of boxes in pixels.
INPUTS, MAPS, OUTPUTS, BOXES, SCORES, LOSSES = 1e-5, 1e-3, 2e-3, 2e-2, 2e-3, 1e-3
GRADIENTS = 2e-2
NAMES = tuple("abcde")
CENTRED_FROM = 10  # Numbers in a row; those of depthwise convolutions are fewer.


def torch_weights(name):
    """What the reference was run with: normal numbers, drawn from the place of each name.

    Rows of matrices have mean 0, which takes away what a ReLU gives all features.
    """
    spec = json.loads((GOLDENS / f"whole_{name}.json").read_text())
    weights = {}
    for i, (key, shape) in enumerate(sorted(spec["shapes"].items())):
        if key.endswith("num_batches_tracked"):
            continue
        rng = np.random.default_rng([1, i])
        if key.endswith("running_var") or (len(shape) == 1 and key.endswith("weight")):
            value = rng.random(shape, dtype=np.float32) + np.float32(0.5)
        elif len(shape) == 1:
            value = rng.standard_normal(shape, dtype=np.float32) * np.float32(0.1)
        else:
            value = rng.standard_normal(shape, dtype=np.float32)
            rows, size = tuple(range(1, len(shape))), value[0].size
            if size >= CENTRED_FROM:
                value -= value.mean(axis=rows, dtype=np.float64, keepdims=True)
            value *= np.float32(np.sqrt(2 / size))
        for scale, shift in [rule[1:] for rule in spec["rules"] if re.search(rule[0], key)][-1:]:
            value *= np.float32(scale)
            value += np.float32(shift)
        weights[key] = value
    return weights


def variables_of(detector, name, images, bgr=None):
    """The weights as variables; every one has its place."""
    shapes = jax.eval_shape(detector.init, jax.random.key(0), images)
    variables, report = from_torch(torch_weights(name), shapes, bgr=bgr)
    assert not report.missing and not report.unused
    return variables


def metrics_of(detector, variables, batch):
    """The losses and counts, by a program that is made faster and runs slower than others."""
    loss = jax.jit(detector.loss, compiler_options={"xla_backend_optimization_level": 1})
    total, (metrics, _) = loss(variables, batch, jax.random.key(0))
    return {**metrics.means, **metrics.counts, "total": total}


def trained_once(detector, variables, batch, **keywords):
    """As `metrics_of`; and the gradient, and the running statistics after the batch."""

    def total_loss(params):
        held = {**variables, "params": params}
        return detector.loss(held, batch, jax.random.key(0), **keywords)

    options = {"xla_backend_optimization_level": 0}
    learn = jax.jit(jax.value_and_grad(total_loss, has_aux=True), compiler_options=options)
    (total, (metrics, statistics)), gradient = learn(variables["params"])
    return {**metrics.means, **metrics.counts, "total": total}, gradient, statistics


def assert_gradients(found, names, norms, system):
    """Compares the norms of a gradient's arrays, which have torch's names."""
    found = to_torch({"params": found}, names=system, bgr=False)
    norms_found = [np.linalg.norm(found[name]) for name in names]
    np.testing.assert_allclose(norms_found, norms, rtol=GRADIENTS, err_msg=" ".join(names))


def assert_sampled(data, name, found, tolerance):
    """Compares a map (B, H, W, C) or another array with the numbers of a file."""
    found = found.transpose(0, 3, 1, 2) if found.ndim == 4 else found
    np.testing.assert_array_equal(found.shape, data[f"{name}/shape"], err_msg=name)
    deviation = data[f"{name}/mean_std_absmax"][1]
    sample = found.reshape(-1)[:: int(data[f"{name}/step"])]
    np.testing.assert_allclose(
        sample, data[f"{name}/sample"], rtol=0, atol=tolerance * deviation, err_msg=name
    )


def assert_same_boxes(found, boxes, scores=None, labels=None, tolerance=BOXES):
    """Compares the boxes of one image in whatever order; equal scores may come in any."""
    assert found.valid.sum() == len(boxes)
    distance = np.abs(found.boxes[found.valid][:, None] - boxes).max(axis=-1) / tolerance
    if scores is not None:
        apart = np.abs(found.scores[found.valid][:, None] - scores) / SCORES
        distance = np.maximum(distance, apart)
    if labels is not None:
        distance[found.labels[found.valid][:, None] != labels] = np.inf
    pairs = linear_sum_assignment(np.minimum(distance, 1e6))
    assert distance[pairs].max() < 1
