"""What a detector is made of and costs, as `jaxdet summary` counts it."""

import json
import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict
from prediction import tiny_model

from jaxdet import detectors, model_file
from jaxdet.commands import costs, job, memory, opening, summary
from jaxdet.commands.costs import Subject
from jaxdet.types import Detector, UserError

FROZEN = dict(norm="frozen", frozen_stages=1)
CONFIG = "--config=tests/training/tiny_config.py"


def subject_of(name, canvas=(64, 64), **settings):
    detector = detectors.build(name, num_classes=80, **settings)
    variables = jax.eval_shape(detector.init, jax.random.key(0), model_file.blank_images(1, canvas))
    return Subject(name, 80, detector, variables, lambda n: model_file.blank_images(n, canvas), 1)


@pytest.mark.parametrize(
    "name, settings, millions",
    [
        # As their authors publish them, for COCO; mmdetection counts what is trained.
        ("yolox", dict(blocks=dict(depth=0.33, width=0.5)), 8.97),
        ("faster_rcnn", dict(backbone=FROZEN), 41.53),
        ("retinanet", dict(backbone=FROZEN), 37.74),
    ],
)
def test_parameters_are_as_many_as_is_published(name, settings, millions):
    subject = subject_of(name, **settings)
    parts = costs.parameters(subject)

    assert round(parts["all"]["trainable"] / 1e6, 2) == millions
    own = [part for name, part in parts.items() if name != "all"]
    for kind, total in parts["all"].items():
        assert sum(part[kind] for part in own) == total
    # The stem and the first stage of a ResNet never move, and no norm of it does.
    frozen = parts["backbone"]["total"] - parts["backbone"]["trainable"]
    assert frozen == (0 if name == "yolox" else 225_344)


def test_levels_are_those_of_the_maps():
    levels = costs.levels(subject_of("retinanet", canvas=(128, 160)))

    assert levels["kind"] == "anchors"
    assert levels["maps"][:2] == [
        {"stride": 8, "cells": [16, 20], "count": 2880},
        {"stride": 16, "cells": [8, 10], "count": 720},
    ]
    assert costs.levels(subject_of("fast_rcnn")) is None


def test_flops_and_bytes_of_a_product_are_as_by_hand():
    weight = jax.ShapeDtypeStruct((3 * 4 * 5, 7), jnp.float32)

    def predict(variables, images):
        pixels = images.pixels.reshape(len(images.pixels), -1).astype(jnp.float32)
        return pixels @ variables["params"]["layer"]["kernel"]

    detector = Detector(None, None, predict)
    variables = {"params": {"layer": {"kernel": weight}}}
    images = lambda count: model_file.blank_images(count, (4, 5))  # noqa: E731
    found = summary.measure(Subject("product", 2, detector, variables, images, 6), compiled=True)

    assert found["flops"] == {"prediction": 2 * 60 * 7 + 60}, "and each pixel becomes a float"
    assert found["parameters"]["layer"] == {"total": 420, "trainable": 420, "statistics": 0}
    sizes = found["bytes"]["prediction"]
    # Images: pixels, sizes and scale of each. Pixels as floats are what is made between.
    assert (sizes["parameters"], sizes["images"]) == (4 * 420, 6 * (60 + 8 + 4))
    assert 0 <= sizes["temporaries"] < 10 * 6 * 60 * 4
    text = summary.format_tables(found)
    assert "prediction" in text and "training step" not in text and "stride" not in text


def run(capfd, *arguments):
    with pytest.raises(SystemExit) as ended:
        summary.main(["summary", *arguments])
    printed, errors = capfd.readouterr()
    return ended.value.code, printed, errors


def test_flops_are_counted_on_the_cpu_and_nowhere_else(monkeypatch):
    """An accelerator's backend counts none; without a CPU they are unknown."""
    subject = Subject("sines", 1, None, {}, None, 1)
    forms = partial(jax.lax.platform_dependent, cpu=lambda x: x, default=lambda x: x + 1)
    trace = lambda subject, count: jax.jit(forms).trace(jnp.ones(count))  # noqa: E731
    assert costs.count_flops(trace, subject) == 1, "of what a chip runs, not of the CPU's form"

    def refuse(backend):
        raise RuntimeError(f"Unknown backend {backend}")

    monkeypatch.setattr(jax, "local_devices", refuse)
    assert costs.count_flops(trace, subject) is None
    found = summary.format_tables(
        {
            **{"detector": "x", "num_classes": 1, "canvas": [8, 8], "batch_size": 1},
            **{"parameters": {"all": {"total": 1, "trainable": 1, "statistics": 0}}},
            **{"levels": None, "flops": {"prediction": None}, "bytes": {"prediction": {"a": 1}}},
        }
    )
    assert re.search(r"^prediction +not counted$", found, re.M)


def test_a_config_has_a_step_and_a_prediction(capfd):
    # So late a drop is at a step that an int32 holds, however long epochs may be.
    lengths = ("--config.num_steps=24 epochs", "--config.optimizer.milestones=('22 epochs',)")
    status, printed, errors = run(
        capfd, CONFIG, "--config.data.root=nowhere", "--device_memory=100MB", "--json", *lengths
    )

    assert (status, errors) == (0, "")
    found = json.loads(printed)
    assert found["flops"]["step"] > 2 * found["flops"]["prediction"] > 0
    step, prediction = found["bytes"]["step"], found["bytes"]["prediction"]
    assert step["gradients"] == step["parameters"] == prediction["parameters"]
    # Momentum, the norm of the gradient and the count of the schedule.
    assert 0 < step["optimizer"] - step["parameters"] < 32
    assert step["averages"] == 0 and step["images"] > prediction["images"]
    assert found["levels"]["maps"][0] == {"stride": 4, "cells": [16, 16], "count": 768}
    # The stem's map alone, of 8 images, 4 channels and 32 x 32 cells in float32, has so many bytes.
    assert found["largest"][0]["bytes"] >= 8 * 4 * 32 * 32 * 4
    assert found["largest"][0]["place"].split("/")[0] in {"loss", *found["parameters"]}
    sizes = [each["bytes"] for each in found["largest"]]
    assert sizes == sorted(sizes, reverse=True) and sum(sizes) < step["activations"]
    assert found["device_memory"] == 10**8 and found["fits"]["prediction"] is None
    fits = found["fits"]["step"]
    needs = [summed(step, 8, count) for count in (fits, fits + 1)]
    assert needs[0] <= (1 - memory.SPARE) * 10**8 < needs[1]


@pytest.mark.parametrize("response", ["stop", "skip", "go_back"])
def test_the_step_of_a_run_that_may_leave_steps_out_is_measured_as_it_is(response):
    """It takes and gives what the run's own does, and its state is there twice."""
    arguments = [CONFIG, "--config.data.root=nowhere", f"--config.on_not_finite={response}"]
    subject, _ = summary._open(["summary", *arguments], "")
    traced, step = costs.trace_step(subject, 8), job._make_step(subject.run)
    given = costs.first_state(subject.run), opening.blank_batch(subject.run.config, 8)
    of_run = jax.eval_shape(lambda state, batch: step(state, batch, 0), *given)

    shapes = [jax.tree.map(lambda leaf: leaf.shape, each) for each in (traced.out_info, of_run)]
    assert shapes[0] == shapes[1]
    assert ("skipped" in of_run[1].counts) == (response != "stop")
    assert len(traced.in_avals[0]) == 2 + (response == "go_back"), "the rate is no constant"
    sizes = memory.known_bytes(subject, "step")
    state = sum(sizes[kind] for kind in ("parameters", "statistics", "averages", "optimizer"))
    if response == "stop":
        assert "kept state" not in sizes
    else:
        assert sizes["kept state"] == state + 4, "the step, too"
        text = summary.format_tables(summary.measure(subject))
        assert re.search(r"^kept state +0\.\d MiB$", text, re.M)


def test_a_step_is_measured_at_the_largest_canvas(capfd):
    def measure(*more):
        settings = ("--batch_size=6", "--config.accumulate=3", *more)
        status, printed, errors = run(capfd, CONFIG, "--device_memory=100MB", "--json", *settings)
        assert (status, errors) == (0, "")
        return json.loads(printed)

    found = measure("--config.data.more_canvases=((64, 128), (32, 160))")
    alone = measure("--config.data.canvas=(64, 128)")

    assert (found["canvas"], found["step_canvas"]) == ([64, 64], [64, 128])
    assert alone["canvas"] == alone["step_canvas"] == [64, 128]
    assert found["bytes"]["step"] == alone["bytes"]["step"]
    assert found["largest"] == alone["largest"]
    assert found["fits"]["step"] == alone["fits"]["step"]
    # FLOPs are quoted for an image of the canvas.
    for name in ("step", "prediction"):
        assert found["flops"][name] < 0.6 * alone["flops"][name]
    text, alike = summary.format_tables(found), summary.format_tables(alone)
    assert re.search(r"^memory +prediction of 6  training step of 6 at 64 x 128$", text, re.M)
    assert "training step at 64 x 128: batches of up to" in text
    assert "an image of 64 x 64" in text
    assert "training step of 6\n" in alike and "training step: batches of up to" in alike


def test_the_step_is_compiled_at_the_largest_canvas_and_its_batch_is_whole_parts(
    capfd, monkeypatch
):
    class Program:
        """In the place of a program: its temporaries are as large as its canvas."""

        def __init__(self, subject, count, canvas=None):
            self.temp_size_in_bytes = 10**6 * math.prod(canvas or (1,))
            self.compile = self.memory_analysis = lambda: self
            self.lower = lambda: self
            self.flops = math.prod(canvas or (1,))

    monkeypatch.setattr(costs, "trace_step", Program)
    monkeypatch.setattr(costs, "trace_prediction", Program)
    monkeypatch.setattr(costs, "flops_of", lambda program: program.flops)
    monkeypatch.setattr(memory, "SPARE", 0)
    settings = ("--config.multiscale_heights=(32, 96)", "--config.accumulate=4", "--memory")
    # 1152 MB an image, next to which all else is little.
    for device_memory, line in (
        ("9GB", "training step at 96 x 96: batches of up to 4 fit a device of 9.0 GB"),
        ("3GB", "training step at 96 x 96: not even a batch of 4 fits a device of 3.0 GB"),
    ):
        status, printed, errors = run(capfd, CONFIG, f"--device_memory={device_memory}", *settings)
        assert (status, errors) == (0, "")
        assert re.search(
            rf"^temporaries +1.0 MiB +{10**6 * 96 * 96 / 2**20:,.1f} MiB$", printed, re.M
        )
        assert re.search(r"^training step +0.00 G$", printed, re.M)
        assert line in printed


@pytest.mark.parametrize(
    "canvas, more, heights, largest",
    [
        ((64, 96), (), (), (64, 96)),
        ((64, 96), ((96, 64), (32, 128)), (), (64, 96)),  # Of equals the first.
        ((64, 96), ((96, 64), (64, 128)), (), (64, 128)),
        ((64, 96), (), (32, 128, 64), (128, 192)),
        ((64, 100), (), (32, 96), (96, 160)),  # To whole multiples of 32, as steps resize.
        ((64, 96), (), (32,), (32, 64)),  # None of the canvas itself.
    ],
)
def test_the_largest_images_of_a_run_are_those_of_its_steps(canvas, more, heights, largest):
    data = {"canvas": canvas, "more_canvases": more, "resize_rule": "rounded"}
    data |= {"max_boxes": 3, "max_proposals": 0}

    assert costs.step_canvas(ConfigDict({"data": data, "multiscale_heights": heights})) == largest


def summed(sizes, size, count):
    """The bytes of a step of `count` images, by those of one of `size`."""
    growing = sizes["images"] + sizes["activations"]
    return sum(sizes.values()) - growing + growing * count / size


def test_a_batch_fits_by_what_is_known():
    once = {"parameters": 10, "gradients": 10, "optimizer": 20, "images": 8}

    def fits(device_memory, **more):
        wanted = round(device_memory / (1 - memory.SPARE)) + 1
        return memory.largest_batch(once | more, 4, wanted)

    assert memory.largest_batch(once, 4, 10**6) is None
    # 40 there once, 2 of pixels and 100 of activations an image.
    assert [fits(n, activations=400) for n in (40, 141, 142, 243, 244)] == [0, 0, 1, 1, 2]
    # The compiler's temporaries have gradients and activations in them: 30 once, 2 + 50 an image.
    assert [fits(n, activations=400, temporaries=210) for n in (91, 92, 144)] == [0, 1, 2]
    # In parts, a batch is a multiple of them.
    wanted = round(550 / (1 - memory.SPARE)) + 1
    for parts, count in ((1, 5), (2, 4), (3, 3), (6, 0)):
        assert (
            memory.largest_batch(once | {"activations": 400}, 4, wanted, accumulate=parts) == count
        )
    assert memory.total(once | {"activations": 400, "temporaries": 210}) == 10 + 20 + 8 + 210


@pytest.mark.parametrize(
    "text, count",
    [
        *[("16GB", 16 * 10**9), ("80 GiB", 80 * 2**30), ("1.5g", 1_500_000_000), ("7", 7)],
        *[("512MB", 512 * 10**6), ("1TiB", 2**40), ("3kb", 3000)],
        *[(text, None) for text in ("", "GB", "-3GB", "16XB", "1e9", "0GB", "1.2.3GB", "nan")],
    ],
)
def test_bytes_are_read_as_people_write_them(text, count):
    if count is not None:
        assert memory.read_bytes(text) == count
        return
    with pytest.raises(UserError, match="--device_memory wants bytes, such as 16GB"):
        memory.read_bytes(text)


def test_the_memory_of_a_device_that_knows_it_is_taken(monkeypatch):
    class Device:
        def __init__(self, known):
            self.memory_stats = lambda: known

    for known, found in ((None, None), ({}, None), ({"bytes_limit": 12}, 12)):
        monkeypatch.setattr(jax, "local_devices", lambda known=known: [Device(known)])
        assert memory.memory_at_hand() == found


def test_a_model_file_has_a_prediction(capfd, tmp_path):
    file = tmp_path / "model.safetensors"
    model_file.write(file, tiny_model.draw_contents())
    for named in (file, tmp_path):  # The folder of a run stands for it.
        status, printed, errors = run(capfd, str(named))
        assert (status, errors) == (0, "")
        assert "yolox, 2 classes, canvas 64 x 96, batches of 1" in printed
        assert re.search(r"^8 +8 x 12 +96$", printed, re.M) and "training step" not in printed
        if named == file:
            first = printed
    assert printed == first


@pytest.mark.parametrize(
    "arguments, line",
    [
        (["nowhere.safetensors"], "nowhere.safetensors: there is no such model file"),
        ([CONFIG, "--device_memory=much"], "--device_memory wants bytes, such as 16GB"),
        ([CONFIG, "--batch_size=0"], "--batch_size wants at least 1, found 0"),
        (
            [CONFIG, "--batch_size=6", "--config.accumulate=4", "--memory"],
            "a batch of 6 does not divide among 1 devices in 4 parts each (config.accumulate)",
        ),
        ([], "name a config: --config=FILE, such as --config=configs/quickstart.py"),
        ([CONFIG, "--config.detector=yolo"], "unknown detector 'yolo'"),
    ],
)
def test_a_mistake_is_one_line(arguments, line, capfd):
    status, printed, errors = run(capfd, *arguments)

    assert (status, printed) == (1, "") and line in errors and errors.count("\n") == 1
