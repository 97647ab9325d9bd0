"""train.py and eval.py, from the command line to the files they leave."""

import errno
import fcntl
import json
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import cv2
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from ml_collections import ConfigDict
from training.metric_lines import read_lines

from jaxdet import commands, configuration, interop, visualize
from jaxdet.commands import build
from jaxdet.data import sources
from jaxdet.evaluation import EVALUATIONS
from jaxdet.types import Detections, Example, UserError

ROOT = Path(__file__).parent.parent
CONFIG = Path(__file__).parent / "training" / "tiny_config.py"
NUM_STEPS = 24
LAST_LINE = len(CONFIG.read_text().splitlines())


@pytest.fixture(scope="module")
def place(tmp_path_factory, soon_compiled):
    """A folder with the data, and an environment where TensorFlow leaves a trace."""
    base = tmp_path_factory.getbasetemp()
    # The workers of pytest-xdist share the folder, and so the run in it.
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "end_to_end"
    trap = folder / "trap"
    trap.mkdir(parents=True, exist_ok=True)
    (trap / "tensorflow.py").write_text(
        f"open({str(folder / 'tensorflow_was_imported')!r}, 'w').close()\nraise ImportError\n"
    )
    environment = {
        **soon_compiled,
        "PYTHONPATH": str(trap),
        # The runs compile the same programs; the cache tells them apart by all of XLA_FLAGS.
        "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return SimpleNamespace(folder=folder, environment=environment)


@pytest.fixture(scope="module")
def start(place):
    """Starts a command on a workdir as a process of its own."""

    def start(command, workdir, *arguments, devices=1, config=CONFIG):
        return subprocess.Popen(
            [
                sys.executable,
                str(ROOT / command),
                *([f"--config={config}"] if config else []),
                f"--workdir={workdir}",
                f"--config.data.root={place.folder / 'data'}",
                *arguments,
            ],
            cwd=ROOT,
            env=place.environment | {"JAX_NUM_CPU_DEVICES": str(devices)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.fixture(scope="module")
def trained(place, start):
    """An unbroken run."""
    workdir, record = place.folder / "unbroken", place.folder / "unbroken.json"
    with (place.folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not record.exists():
            process = start("train.py", workdir)
            printed, errors = process.communicate()
            assert process.returncode == 0, errors
            record.write_text(json.dumps({"out": printed, "err": errors}))
    return SimpleNamespace(workdir=workdir, **json.loads(record.read_text()))


@pytest.fixture
def configure():
    """The tiny config with some overrides."""

    def configure(*arguments):
        return configuration.read_command_line(["", f"--config={CONFIG}", *arguments]).config

    return configure


@pytest.fixture(scope="module")
def weights(place):
    """A file of a tiny backbone as torchvision names it, and the variables in it."""
    config = configuration.read_command_line(["", f"--config={CONFIG}"]).config
    shapes = commands.abstract_variables(config, commands.build_detector(config, num_classes=2))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: rng.random(leaf.shape, np.float32) / 10, shapes)
    tensors = interop.to_torch(variables, names="resnet")
    file = place.folder / "backbone.npz"
    np.savez(file, **tensors, **{"fc.bias": np.zeros(5)})
    return SimpleNamespace(file=file, variables=variables, tensors=tensors)


@pytest.fixture
def run(place, monkeypatch, capfd):
    """Runs a command in this process up to its end; gives its status and outputs."""

    def run(command, *arguments, config=CONFIG, root=place.folder / "data"):
        named = [f"--config={config}"] if config else []
        rooted = [f"--config.data.root={root}"] if config == CONFIG else []
        monkeypatch.setattr(sys, "argv", [command, *named, *rooted, *arguments])
        with pytest.raises(SystemExit) as exit:
            commands.run_command(runpy.run_path(str(ROOT / command))["main"])
        out, err = capfd.readouterr()
        return SimpleNamespace(status=exit.value.code, out=out, err=err)

    return run


def read_checkpoint(workdir, step):
    folder = workdir / "checkpoints" / str(step)
    with ocp.StandardCheckpointer() as checkpointer:
        return [checkpointer.restore(folder / item) for item in ("variables", "training")]


def wait_for(path, process):
    while not path.exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)


def test_a_run_leaves_everything_to_look_at(trained):
    config = json.loads((trained.workdir / "config.json").read_text())
    assert config["model"]["width"] == 4
    assert config["model"]["max_candidates"] == 2000, "a default that the file does not name"
    results = json.loads((trained.workdir / "eval.json").read_text())
    assert set(results) >= set("AP AP50 AP75 APs APm APl AR1 AR10 AR100 ARs ARm ARl".split())
    assert set(results["per_class"]) == {"circle", "square"}
    lines = read_lines(trained.workdir)
    assert lines[-1]["step"] == NUM_STEPS and lines[-1]["eval/AP"] == results["AP"]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < losses[0]
    pictures = sorted(path.name[:7] for path in (trained.workdir / "pictures").glob("*.png"))
    assert pictures == ["0000008"] * 2 + ["0000016"] * 2 + ["0000024"] * 2
    assert list(trained.workdir.glob("events.out.tfevents.*"))
    assert (trained.workdir / "checkpoints" / str(NUM_STEPS)).is_dir()


def test_a_run_prints_its_config_the_table_and_where_things_are(trained):
    assert '"learning_rate": 0.02' in trained.out
    assert "AP50" in trained.out
    for folder in ("pictures", "checkpoints"):
        assert str(trained.workdir / folder) in trained.out
    assert f"tensorboard --logdir={trained.workdir}" in trained.out
    assert trained.err.count("drawing 24 pictures of shapes into") == 1
    assert trained.err.count("step 12: reloaded the parameters of step 8, the best so far") == 1


def test_a_run_killed_half_way_and_resumed_ends_with_the_same_bits(trained, place, start):
    workdir = place.folder / "killed"
    process = start("train.py", workdir)
    wait_for(workdir / "checkpoints" / "9", process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL

    config = (workdir / "config.json").read_text()
    # Another setting, though the schedule has no use for it.
    process = start("train.py", workdir, "--config.optimizer.final_ratio=0.5")
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert "another config: optimizer.final_ratio was 0.0 and is 0.5" in err
    assert (workdir / "config.json").read_text() == config
    step = out.split("resuming after step ")[1].split(";")[0]
    resumed = json.loads((workdir / f"config.{step}.json").read_text())
    assert resumed["optimizer"]["final_ratio"] == 0.5
    jax.tree.map(
        np.testing.assert_array_equal,
        read_checkpoint(workdir, NUM_STEPS),
        read_checkpoint(trained.workdir, NUM_STEPS),
    )
    assert read_lines(workdir) == read_lines(trained.workdir)
    assert (workdir / "eval.json").read_text() == (trained.workdir / "eval.json").read_text()


def test_two_processes_train_as_one_with_two_devices(place, start):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    short = ("--config.num_steps=3", "--config.eval_every=0", "--config.log_every=1")
    short += ("--config.evaluation.name=voc",)
    joined = ("--distributed", f"--coordinator=127.0.0.1:{port}", "--num_processes=2")
    apart, alone = place.folder / "two_processes", place.folder / "one_process"
    processes = [start("train.py", apart, *short, *joined, f"--process_id={i}") for i in (0, 1)]
    for process in processes:
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    process = start("train.py", alone, *short, devices=2)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    for one, other in zip(read_lines(apart), read_lines(alone), strict=True):
        assert one.keys() == other.keys()
        measured = [key for key in one if one[key] is not None]
        assert [one[k] for k in measured] == pytest.approx([other[k] for k in measured], rel=1e-5)
    assert list(json.loads((apart / "eval.json").read_text())) == ["mAP", "per_class"]
    assert read_lines(alone)[-1].keys() >= {"eval/mAP", "eval/per_class/square/AP"}
    metrics = (alone / "checkpoints" / "3" / "metrics" / "metrics").read_text()
    assert list(json.loads(metrics)) == ["mAP"], "by which the best is chosen"


def test_a_run_that_is_told_to_stop_saves_and_says_so(place, start, weights):
    workdir = place.folder / "stopped"
    process = start("train.py", workdir, f"--config.init_from={weights.file}")
    wait_for(workdir / "checkpoints" / "3", process)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM, err
    assert f"weights from {weights.file}: {len(weights.tensors)} arrays loaded" in out
    line = out.splitlines()[-1]
    assert line.startswith("stopped by signal 15; step ") and "Traceback" not in err
    step = int(line.split("step ")[1].split()[0])
    assert step < NUM_STEPS
    assert (workdir / "checkpoints" / str(step)).is_dir()


@pytest.mark.parametrize("arguments", [(), ("--config.model.norm=frozen",)])
def test_a_run_may_start_from_the_weights_of_a_backbone(configure, weights, arguments):
    config = configure(f"--config.init_from={weights.file}", *arguments)
    commands.check(config)
    detector = commands.build_detector(config, num_classes=2)
    shapes = commands.abstract_variables(config, detector)

    def init(key, images):  # The detector's own takes seconds to compile.
        return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)

    variables, origin = commands.first_variables(config, detector._replace(init=init))
    assert jax.tree.map(np.shape, variables) == jax.tree.map(np.shape, shapes)
    for kind in weights.variables:
        jax.tree.map(
            np.testing.assert_array_equal,
            variables[kind]["backbone"],
            weights.variables[kind]["backbone"],
        )
    drawn = len(jax.tree.leaves(variables)) - len(weights.tensors)
    assert origin.endswith(
        f": {len(weights.tensors)} arrays loaded, {drawn} drawn at random, 1 unused"
    )


@pytest.mark.parametrize(
    "arguments, setting",
    [
        ("--config.model.norm=frozen", "norm 'frozen'"),
        ("--config.model.frozen_stages=1", "frozen_stages 1"),
    ],
)
def test_a_backbone_that_is_frozen_must_be_whole(configure, weights, tmp_path, arguments, setting):
    file = tmp_path / "part.npz"
    np.savez(file, **{k: v for k, v in weights.tensors.items() if k != "layer2.0.bn1.weight"})
    config = configure(f"--config.init_from={file}", arguments)
    detector = commands.build_detector(config, num_classes=2)
    message = f"nothing for params/backbone/layer2/block0/norm1/scale, .*model.{setting} needs"
    with pytest.raises(UserError, match=message):
        commands.first_variables(config, detector)


class FourPictures:
    """A source whose third picture is broken, seen by a detector that finds nothing."""

    class_names = ("circle", "square")
    broken = 2

    def __len__(self):
        return 4

    def __getitem__(self, i):
        image = cv2.imencode(".png", np.full((200, 300, 3), 60 * i + 30, np.uint8))[1].tobytes()
        none = np.zeros(0, bool)
        return Example(
            id=f"picture {i}",
            image=b"broken" if i == self.broken else image,
            boxes=np.zeros((0, 4), np.float32),
            labels=np.zeros(0, np.int32),
            crowd=none,
            difficult=none,
            area=np.zeros(0),
            size=(200, 300),
        )

    @staticmethod
    def predict(variables, images):
        shape = (*images.scales.shape, 1)
        zeros = np.zeros(shape, np.float32)
        return Detections(np.zeros((*shape, 4), np.float32), zeros, zeros.astype(int), zeros > 0)

    @staticmethod
    def predict_whole(variables, images):
        """Finds the whole picture; the score is its brightness."""
        boxes = np.tile(np.float32([0, 0, 999, 999]), (*images.scales.shape, 1, 1))
        scores = images.pixels[..., :1, 0, 0] / np.float32(255)
        return Detections(boxes, scores, np.zeros(scores.shape, int), scores > 0)


def test_an_image_that_cannot_be_read_is_left_out_and_said(configure, caplog):
    config = configure("--config.num_pictures=4")
    source = FourPictures()
    commands.evaluate(config, source, source.predict, {})
    assert "evaluated 3 of 4 images" in caplog.text
    pictures = commands.draw(config, source, source.predict, {})
    assert [name for name, _ in pictures] == ["picture 0", "picture 1", "picture 3"]
    assert [np.bincount(pixels.ravel()).argmax() for _, pixels in pictures] == [30, 90, 210]


@pytest.mark.parametrize(
    "classes, evaluation, fits",
    [
        (("circle", "square"), "coco", False),
        (("circle", "square"), "proposals", True),
        (("circle",), "coco", True),
        ((), "voc", False),
    ],
)
def test_what_tells_no_classes_apart_is_not_judged_by_class(configure, classes, evaluation, fits):
    config = configure(f"--config.evaluation.name={evaluation}")
    config.detector = "rpn"
    config.model = ConfigDict(dict(depth=10, width=4, norm="batch", fpn_channels=8))
    config.data.classes = classes
    if fits:
        return commands.check(config)
    with pytest.raises(UserError, match="'rpn' tells no classes apart: set evaluation.name"):
        commands.check(config)


@pytest.mark.parametrize(
    "name, names", [("faster_rcnn", ("circle", "square")), ("rpn", ("object",))]
)
def test_what_tells_no_classes_apart_is_drawn_as_objects(configure, monkeypatch, name, names):
    drawn, blank = [], np.zeros((2, 2, 3), np.uint8)
    monkeypatch.setattr(visualize, "compare", lambda *given, **_: drawn.append(given) or blank)
    config = configure("--config.num_pictures=1")
    config.detector = name
    commands.draw(config, FourPictures(), FourPictures.predict, {})
    assert [given[3] for given in drawn] == [names]


def test_confusion_matrices_are_drawn_with_the_names_of_their_classes(configure, monkeypatch):
    drawn, blank = [], np.zeros((2, 2, 3), np.uint8)
    monkeypatch.setattr(visualize, "confusion_matrix", lambda *given: drawn.append(given) or blank)
    source = FourPictures()
    matrices = {"rpn_confusion": np.eye(2, dtype=int), "roi_confusion": np.eye(3, dtype=int)}
    config = configure("--config.num_pictures=0")
    pictures = commands.draw(config, source, source.predict, {}, matrices)
    assert [name for name, _ in pictures] == list(matrices)
    assert [names for _, names in drawn] == [
        ("object", "background"),
        ("circle", "square", "background"),
    ]


@pytest.mark.parametrize("name", EVALUATIONS)
def test_of_each_evaluation_at_most_so_many_images_are_evaluated(configure, monkeypatch, name):
    config = configure(f"--config.evaluation.name={name}", "--config.eval_images=2")
    seen, evaluate = [], EVALUATIONS[name].evaluate

    def look(examples, *found, **settings):
        seen.extend(example.id for example in examples)
        return evaluate(examples, *found, **settings)

    monkeypatch.setattr(EVALUATIONS[name], "evaluate", look)
    source = FourPictures()
    source.broken = None
    results = commands.evaluate(config, source, source.predict_whole, {})
    assert seen == ["picture 0", "picture 2"]
    assert EVALUATIONS[name].BEST in results


def test_proposals_that_are_written_can_be_given(configure, monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(sources, "build", lambda *arguments, **settings: FourPictures())
    config = configure("--config.evaluation.name=proposals", "--config.eval_images=2")
    seen = SimpleNamespace(evaluate=lambda *given, **settings: {"given": given, **settings})
    monkeypatch.setitem(EVALUATIONS, "proposals", seen)
    source, file = FourPictures(), tmp_path / "new" / "VOC2007" / "test.npz"
    results = commands.evaluate(config, source, source.predict_whole, {}, proposals_file=str(file))
    examples, found, class_names = results.pop("given")
    assert [example.id for example in examples] == ["picture 0", "picture 1"]
    assert (len(found), class_names) == (2, source.class_names)
    assert results == {"limits": (100, 300, 1000)}
    assert "evaluated 3 of 4 images" in caplog.text

    config.data.proposals = f"{tmp_path}/new/{{split}}.npz"
    given = commands.build_source(config, "VOC2007/test", ())
    for i, count in enumerate([1, 1, 0, 1]):  # The third cannot be read.
        example = given[i]
        np.testing.assert_array_equal(example.proposals, np.tile([0, 0, 300, 200], (count, 1)))
        np.testing.assert_allclose(example.proposal_scores, [(60 * i + 30) / 255] * count)
    with pytest.raises(UserError, match="no proposals file .*new/train.npz"):
        commands.build_source(config, "train", ())


def test_of_all_images_that_get_proposals_a_part_is_evaluated(configure, monkeypatch, tmp_path):
    config = configure("--config.eval_images=2")
    monkeypatch.setattr(EVALUATIONS["coco"], "evaluate", lambda examples, *_: {"of": examples})
    source, file = FourPictures(), str(tmp_path / "test.npz")
    source.broken = None
    results = commands.evaluate(config, source, source.predict_whole, {}, proposals_file=file)
    assert [example.id for example in results["of"]] == ["picture 0", "picture 2"]
    with np.load(file) as written:
        assert len(written["ids"]) == 4


def test_blank_images_have_the_slots_of_given_proposals(configure):
    assert build.blank_images(configure(), 3).proposals is None
    config = configure("--config.data.proposals=a.npz", "--config.data.max_proposals=7")
    proposals = build.blank_images(config, 3).proposals
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), proposals) == (
        ((3, 7, 4), np.float32),
        ((3, 7), np.float32),
        ((3, 7), bool),
    )


def test_images_and_objects_that_a_run_could_not_use_are_counted():
    assert commands.losses_of_data(SimpleNamespace(unreadable=0, left_out=0)) == []
    assert commands.losses_of_data(SimpleNamespace(unreadable=2, left_out=3)) == [
        "2 times an unreadable image gave way to the next",
        "3 times an object found no slot in data.max_boxes",
    ]


def test_a_split_without_images_is_a_mistake(configure, monkeypatch):
    monkeypatch.setattr(sources, "build", lambda *arguments, **settings: [])
    with pytest.raises(UserError, match="there is no image in the split 'test'"):
        commands.build_source(configure(), "test", ())


@pytest.mark.parametrize("command", ["train.py", "eval.py"])
def test_help_is_the_usage(run, command):
    ended = run(command, "--help", config=None)
    assert ended.status == 0 and f"python {command} --" in ended.out


@pytest.mark.parametrize("config", [CONFIG, None])
def test_a_finished_run_says_so_and_writes_nothing(trained, run, config):
    def stamps():
        return {path: path.stat().st_mtime_ns for path in trained.workdir.rglob("*")}

    before = stamps()
    ended = run("train.py", f"--workdir={trained.workdir}", config=config)
    assert ended.status == 0
    assert f"is finished: {NUM_STEPS} of {NUM_STEPS} steps are done" in ended.out
    assert stamps() == before


def test_eval_takes_the_best_checkpoint(trained, place, start):
    workdir = shutil.copytree(trained.workdir, place.folder / "evaluated")
    (workdir / "eval.json").unlink()
    # Where weights came from does not matter any more; the config is the run's.
    process = start("eval.py", workdir, "--config.init_from=gone.npz", config=None)
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert "(best)" in out and "AP50" in out
    found = json.loads((workdir / "eval.json").read_text())["AP"]
    assert found == max(line["eval/AP"] for line in read_lines(workdir) if "eval/AP" in line)


def test_eval_of_another_split_writes_its_proposals_and_leaves_the_results(trained, place, start):
    workdir = shutil.copytree(trained.workdir, place.folder / "proposing")
    before = (workdir / "eval.json").read_text()
    options = ("--split=train", f"--write_proposals={workdir}/{{split}}.npz")
    process = start("eval.py", workdir, *options, "--config.evaluation.name=voc", config=None)
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert "(best) on train" in out and f"16 images are written to {workdir}/train.npz" in out
    results = json.loads((workdir / "eval_train.json").read_text())
    assert f"all   {100 * results['mAP']:8.1f}" in out and "AP50" not in out
    assert (workdir / "eval.json").read_text() == before
    with np.load(workdir / "train.npz") as written:
        assert len(written["ids"]) == 16 and written["counts"].max() <= 10
        assert written["boxes"].shape == (written["counts"].sum(), 4)


def test_tensorflow_is_never_imported(trained, place):
    assert not (place.folder / "tensorflow_was_imported").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--config.num_step=3"], "config has no key 'num_step'; did you mean 'num_steps'?"),
        (["--config.model.widht=3"], "config.model has no key 'widht'; did you mean 'width'?"),
        (["--config.seed.x=3"], "config.seed has no keys; it is 0"),
        (["--config.seed=abc"], "flag --config.seed=abc: invalid literal"),
        (
            ["--config.data.canvas=(64,'a')"],
            "config.data.canvas wants items of type int",
        ),
        (["--wrkdir=runs"], "Unknown command line flag 'wrkdir'. Did you mean: workdir"),
        (["more"], "unexpected argument 'more'"),
        (["--config.detector=slow_rcnn"], "unknown detector 'slow_rcnn'; known: "),
        (["--config.optimizer.name=sdg"], "unknown optimizer.name 'sdg'"),
        (["--config.model.norm=frozen"], "config.model.norm is 'frozen', which needs pretrained"),
        (["--config.data.source=vok"], "unknown data source 'vok'; there are shapes, voc, coco"),
        (["--config.data.options.num_trian=3"], "did you mean 'num_train'?"),
        (["--config.data.root="], "data.root is empty"),
        (["--config.batch_size=9"], "config.batch_size 9 does not divide among 8"),
        (["--config.eval_batch_size=9"], "config.eval_batch_size 9 does not divide among 8"),
        (["--config.num_steps=0"], "config.num_steps wants at least 1, found 0"),
        (
            ["--config.eval_every=0"],
            "reload_best_at_milestones wants an evaluation up to step 12, found eval_every 0",
        ),
        (["--config.optimizer.clip_norm=-1.0"], "config.optimizer.clip_norm wants at least 0"),
        (["--config.model.hidden=0"], "config.model: hidden must be at least 1, got 0"),
        (["--config.model.head_fcs=(1,2)"], "head_fcs wants three numbers"),
        (["--config.data.canvas=(64,)"], "config.data.canvas wants two numbers, found (64,)"),
        (["--config.data.canvas=(-64,64)"], "config.data.canvas wants at least 1, found (-64, 64)"),
        (["--config.pictures_every=-1"], "config.pictures_every wants at least 0, found -1"),
        (
            ["--config.optimizer.schedule=cosine"],
            "reload_best_at_milestones wants optimizer.schedule 'multistep' with milestones, found "
            "'cosine' with (12,)",
        ),
        (["--config.optimizer.milestones=()"], "found 'multistep' with ()"),
        (["--config.log_every=0"], "config.log_every wants at least 1, found 0"),
        (["--config.optimizer.base_batch_size=0"], "config.optimizer.base_batch_size wants at"),
        (["--config.init_from=no.npz"], "config.init_from: there is no file no.npz"),
        (["--config.model.depth=51"], "config.model: depth"),
        (["--config.model.dtype=float31"], "config.model: data type 'float31' not understood"),
        (["--config.model.norm=foo"], "config.model: "),
        (["--config.model.rpn_positive_iou=1.5"], "config.model: "),
        (["--config.model.max_candidates=2"], "config.model: max_candidates 2 < max_detections 10"),
        (["--config.optimizer.momentun=0"], "did you mean 'momentum'?"),
        (["--config.data.vertical_flp=0"], "did you mean 'vertical_flip'?"),
        (["--config.evaluation.name=vok"], "unknown evaluation.name 'vok'; did you mean 'voc'?"),
        (["--config.evaluation.eleven_point=1"], "config.evaluation has no key 'eleven_point'"),
        (
            ["--config.evaluation.name=voc", "--config.evaluation.eleven_pont=1"],
            "did you mean 'eleven_point'?",
        ),
        (
            ["--config.evaluation.name=voc", "--config.evaluation.iou_threshold=50"],
            "config.evaluation: iou_threshold must lie in (0, 1], got 50",
        ),
        (
            ["--config.evaluation.name=proposals", "--config.evaluation.limits=(10,1)"],
            "config.evaluation: limits wants rising numbers from 1 up, got (10, 1)",
        ),
        (["--config.data.proposals=a.npz"], "set both or neither, found 'a.npz' and 0"),
        (["--config.data.max_proposals=-1"], "config.data.max_proposals wants at least 0"),
    ],
)
def test_a_mistake_is_one_line(run, tmp_path, arguments, message):
    ended = run("train.py", f"--workdir={tmp_path / 'run'}", *arguments)
    assert ended.status == 1
    assert ended.err.startswith("error: ") and message in ended.err
    assert ended.err.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "edit, message",
    [
        (
            "config.model.fpn_chanels = 8",
            "config.model has no key 'fpn_chanels'; did you mean 'fpn_",
        ),
        ("config.model.num_classes = 8", "config.model has no key 'num_classes'"),
        ("config.data.horizontal_flp = 0", "config.data has no key 'horizontal_flp'; did you mean"),
        ("config.optimizer.momentun = 0", "config.optimizer has no key 'momentun'; did you mean"),
        ("config.model.frozen_stages = 1", "config.model.frozen_stages is 1, which needs"),
        ("del config.seed", "config lacks the key 'seed'"),
        ("del config.data.train_split", "config.data lacks the key 'train_split'"),
        ("del config.data.max_boxes", "config.data lacks the key 'max_boxes'"),
        ("del config.optimizer.learning_rate", "config.optimizer lacks the key 'learning_rate'"),
        ("config.sed = 1", "config has no key 'sed'; did you mean 'seed'?"),
        (
            "del config.reload_best_at_milestones; config.reload_best = 1",
            "config has no key 'reload_best'; did you mean 'reload_best_at_milestones'?",
        ),
        ("del config.seed; config.seed = '1'", "config.seed wants at least 0, found '1'"),
        ("config.data = 3", "TypeError: Could not override field 'data'"),
        ("del config.data; config.data = 3", "config.data wants to be a ConfigDict, found 3"),
        ("config.evaluation = 3", "config.evaluation wants to be a ConfigDict, found 3"),
        (
            "config.evaluation = ConfigDict({'nam': 'voc'})",
            "config.evaluation has no key 'nam'; did you mean 'name'?",
        ),
        (
            "config.evaluation = ConfigDict({'name': 'voc', 'iou_threshold': 'a'})",
            "config.evaluation: ",
        ),
        ("config = dict(config)", "gives no ConfigDict, but {"),
        ("config.seed = sed", f"mine.py:{LAST_LINE}: NameError: name 'sed' is not defined"),
        ("config.seed = = 3", f"mine.py:{LAST_LINE}: SyntaxError: invalid syntax"),
        ("int('one')", f"mine.py:{LAST_LINE}: ValueError: invalid literal"),
    ],
)
def test_a_mistake_in_the_file_is_one_line(run, tmp_path, edit, message):
    file = tmp_path / "mine.py"
    end = "    return config"
    file.write_text(CONFIG.read_text().replace(end, f"    {edit}\n{end}"))
    ended = run("train.py", f"--workdir={tmp_path / 'run'}", config=file)
    assert ended.status == 1
    assert ended.err.startswith("error: ") and message in ended.err
    assert ended.err.count("\n") == 1


@pytest.mark.parametrize(
    "config, message", [(None, "name a config"), ("tiny_confg.py", "no config file tiny_confg.py")]
)
def test_a_config_that_is_not_there_is_one_line(run, config, message):
    ended = run("train.py", config=config)
    assert (ended.status, ended.err.count("\n")) == (1, 1)
    assert message in ended.err


@pytest.mark.parametrize(
    "text, argument, message",
    [
        ("def get_konfig(): ...", "", "has no function get_config()"),
        ("def get_config(): ...", ":12", "mine.py takes no argument, found '12'"),
        ("def get_config(number): ...", "", "TypeError: get_config() missing 1 required"),
    ],
)
def test_a_file_without_a_fitting_get_config_is_one_line(run, tmp_path, text, argument, message):
    (tmp_path / "mine.py").write_text(text)
    ended = run("train.py", config=f"{tmp_path / 'mine.py'}{argument}")
    assert (ended.status, ended.err.count("\n")) == (1, 1)
    assert message in ended.err


def test_a_config_file_runs_once(tmp_path):
    file = tmp_path / "mine.py"
    log = f"with open({str(tmp_path / 'log')!r}, 'a') as log: log.write('run ')\n"
    file.write_text(log + CONFIG.read_text())
    configuration.read_command_line(["train.py", f"--config={file}", "--config.seed=3"])
    assert (tmp_path / "log").read_text() == "run "


def test_defaults_that_the_file_does_not_name_can_be_overridden(configure):
    config = configure(
        "--config.model.max_candidates=300",
        "--config.optimizer.momentum=0.8",
        "--config.optimizer.clip_norm=10",
        "--config.optimizer.milestones=(3,5)",
        "--config.data.vertical_flip=0.5",
    )
    assert config.model.max_candidates == 300
    assert (config.optimizer.momentum, config.optimizer.clip_norm) == (0.8, 10.0)
    assert config.optimizer.milestones == (3, 5)
    assert config.data.vertical_flip == 0.5
    assert config.data.horizontal_flip == 0.5, "the default"


def test_the_workdir_is_named_after_the_config_and_its_argument():
    for argument, workdir in [("", "runs/tiny_config"), (":12", "runs/tiny_config-12")]:
        command = configuration.read_command_line(["train.py", f"--config={CONFIG}{argument}"])
        assert command.workdir == Path(workdir)
    assert command.config.num_steps == 12


def test_another_data_source_begins_with_its_own_options(configure):
    drawn = configure("--config.data.options.max_objects=2").data
    assert drawn.options.num_train == 16 and drawn.options.max_objects == 2
    other = configure("--config.data.source=coco", "--config.data.options.images=here").data
    assert other.options.to_dict() == {
        "annotations": "annotations/instances_{split}.json",
        "images": "here",
    }
    assert configure("--config.data.source=voc").data.options.to_dict() == {}


def test_the_evaluation_has_defaults_and_another_name_begins_with_its_own(configure, tmp_path):
    assert configure().evaluation.to_dict() == {"name": "coco"}
    file = tmp_path / "mine.py"
    section = "config.evaluation = ConfigDict({'name': 'voc', 'eleven_point': True})"
    file.write_text(CONFIG.read_text().replace("    return", f"    {section}\n    return"))
    argv = ["train.py", f"--config={file}"]
    config = configuration.read_command_line(argv).config
    assert config.evaluation.to_dict() == {
        "name": "voc",
        "eleven_point": True,
        "inclusive": False,
        "iou_threshold": 0.5,
    }
    config = configuration.read_command_line([*argv, "--config.evaluation.name=proposals"]).config
    assert config.evaluation.to_dict() == {"name": "proposals", "limits": (100, 300, 1000)}


def test_the_config_of_a_run_is_read_from_its_workdir(configure, tmp_path):
    config = configure("--config.optimizer.milestones=(3,5)")
    config.data.resize = ((48, 64), 64)
    configuration.save(config, tmp_path / "config.json")
    argv = ["eval.py", f"--workdir={tmp_path}"]
    command = configuration.read_command_line(argv)
    assert command.config == config and command.workdir == tmp_path
    assert command.config.data.resize == ((48, 64), 64)
    config = configuration.read_command_line([*argv, "--config.optimizer.milestones=(4,)"]).config
    assert config.optimizer.milestones == (4,)


@pytest.mark.parametrize("text", ["{", "[]", "3"])
def test_a_saved_config_that_is_damaged_is_one_line(run, tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    ended = run("eval.py", f"--workdir={tmp_path}", config=None)
    assert (ended.status, ended.err.count("\n")) == (1, 1)
    assert f"{tmp_path / 'config.json'} is not the config of a run" in ended.err


def test_a_config_that_makes_another_run_is_compared_with_the_saved_one(configure, tmp_path):
    config, saved = configure(), tmp_path / "config.json"
    assert configuration.differing_keys(config, saved) == []
    configuration.save(config, saved)
    assert configuration.differing_keys(config, saved) == []
    # The same run.
    config.log_every, config.data.num_threads, config.data.root = 5, 9, "there"
    config.pictures_every = 7
    config.optimizer.learning_rate = 0.5
    config.data.max_boxes, config.num_steps = 9, 30
    assert configuration.differing_keys(config, saved) == [
        "data.max_boxes was 8 and is 9",
        "num_steps was 24 and is 30",
        "optimizer.learning_rate was 0.02 and is 0.5",
    ]
    config.data.classes = ("square", "circle")
    with pytest.raises(UserError, match=r"has data.classes \['circle', 'square'\], found"):
        configuration.differing_keys(config, saved)


@pytest.mark.parametrize(
    "error, line",
    [
        (OSError(errno.ENOSPC, "No space left on device", "a/b"), "a/b: No space left on device"),
        (OSError("cut\noff"), "cut off"),
        (UserError("no\nsuch"), "no such"),
    ],
)
def test_a_failing_disk_is_one_line(capfd, error, line):
    def main(argv):
        raise error

    with pytest.raises(SystemExit) as exit:
        commands.run_command(main)
    assert exit.value.code == 1
    assert capfd.readouterr().err == f"error: {line}\n"


def test_a_workdir_that_is_a_file_is_one_line(run, trained, tmp_path):
    (tmp_path / "file").write_text("mine")
    ended = run("train.py", f"--workdir={tmp_path / 'file'}")
    assert (ended.status, ended.err.count("\n")) == (1, 1)
    assert str(tmp_path / "file") in ended.err
    assert (tmp_path / "file").read_text() == "mine"


def test_frozen_stages_are_left_out_of_the_optimizer(configure, weights):
    config = configure(f"--config.init_from={weights.file}", "--config.model.frozen_stages=1")
    commands.check(config)
    variables = commands.abstract_variables(config, commands.build_detector(config, num_classes=2))
    tx, _ = commands.make_optimizer(config)
    kept = jax.tree_util.tree_leaves_with_path(jax.eval_shape(tx.init, variables["params"]))
    names = {jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in kept}
    assert not any("layer1/" in name or "stem_" in name for name in names)
    assert any("layer2/" in name for name in names)


@pytest.mark.parametrize(
    "arguments, frozen",
    [
        (("--config.model.frozen_stages=1",), {"stem_conv", "stem_norm", "layer1"}),
        (("--config.model.backbone=vgg", "--config.model.frozen_stages=2"), {"layer1", "layer2"}),
        (("--config.model.backbone=vgg",), set()),
    ],
)
def test_each_backbone_has_its_own_frozen_parts(configure, monkeypatch, arguments, frozen):
    config = configure(*arguments)
    seen = {}
    monkeypatch.setattr(
        build, "build_optimizer", lambda **settings: (seen.update(settings), lambda step: 0)
    )
    commands.make_optimizer(config)
    assert set(seen["frozen"]) == {f"backbone/{part}" for part in frozen}
    assert build.frozen_settings(config) == (["frozen_stages"] if frozen else [])


def test_a_vgg_has_five_stages_to_freeze(configure):
    vgg = "--config.model.backbone=vgg"
    commands.make_optimizer(configure(vgg, "--config.model.frozen_stages=5"))
    with pytest.raises(UserError, match=r"config.model: frozen_stages must be 0..5; found 6"):
        commands.make_optimizer(configure(vgg, "--config.model.frozen_stages=6"))
    with pytest.raises(UserError, match=r"config.model: frozen_stages must be 0..4; found 5"):
        commands.make_optimizer(configure("--config.model.frozen_stages=5"))


def test_milestones_that_come_to_nothing_are_said(run, tmp_path):
    # The mistake ends the run behind the warning.
    drops = ("--config.optimizer.milestones=(9,24,30)", "--config.init_from=no.npz")
    ended = run("train.py", f"--workdir={tmp_path / 'run'}", *drops)
    assert ended.err.splitlines() == [
        "warning: config.optimizer.milestones 24, 30 come to nothing: num_steps is 24",
        "error: config.init_from: there is no file no.npz",
    ]


def test_a_checkpoint_of_another_shape_names_the_leaf_and_stays(trained, run):
    config = (trained.workdir / "config.json").read_text()
    for command in ("train.py", "eval.py"):
        argument = f"--workdir={trained.workdir}"
        ended = run(command, argument, "--config.model.hidden=24", "--config.num_steps=30")
        assert ended.status == 1
        assert "does not fit the config: params/box_head/" in ended.err
        assert "deltas/kernel: wanted (24, 8) float32, found (16, 8) float32" in ended.err
        assert ended.err.count("\n") == 1
    assert (trained.workdir / "config.json").read_text() == config


@pytest.mark.parametrize("which, message", [("7", "no checkpoint '7'"), ("bst", "'bst'")])
def test_an_unknown_checkpoint_lists_those_there_are(trained, run, which, message):
    ended = run("eval.py", f"--workdir={trained.workdir}", f"--checkpoint={which}")
    assert ended.status == 1
    assert message in ended.err and "found latest, best and" in ended.err


def test_eval_without_a_run_is_one_line(run, tmp_path):
    ended = run("eval.py", f"--workdir={tmp_path / 'nothing'}")
    assert ended.status == 1
    assert ended.err.startswith("error: no checkpoint to evaluate")
    assert not (tmp_path / "nothing").exists()
    ended = run("eval.py", f"--workdir={tmp_path / 'nothing'}", config=None)
    assert (ended.status, ended.err.count("\n")) == (1, 1)
    assert "name a config" in ended.err and "nothing has no config.json" in ended.err


def test_a_file_for_proposals_has_its_suffix(trained, run):
    ended = run("eval.py", f"--workdir={trained.workdir}", "--write_proposals=proposals/{split}")
    assert (ended.status, ended.err.count("\n")) == (1, 1)
    assert "--write_proposals wants a file.npz, found proposals/test" in ended.err


def test_yolox_killed_before_its_final_steps_ends_with_the_same_bits(place, start):
    """Mosaics and drawn heights before, no mosaics and an L1 loss behind, averages all along."""
    config = Path(__file__).parent / "training" / "tiny_yolox_config.py"
    whole, killed = place.folder / "yolox", place.folder / "yolox_killed"
    out, err = start("train.py", whole, config=config).communicate()
    assert "AP50" in out, err
    process = start("train.py", killed, config=config)
    wait_for(killed / "checkpoints" / "3", process)  # The final steps begin behind the fourth.
    process.send_signal(signal.SIGKILL)
    process.communicate()
    out, err = start("train.py", killed, config=config).communicate()
    assert "resuming after step 3;" in out, err

    variables, training = read_checkpoint(whole, 8)
    assert training.keys() == {"step", "opt_state", "params", "batch_stats"}
    averages, params = (jax.tree.leaves(tree["params"]) for tree in (variables, training))
    assert all((a != p).any() for a, p in zip(averages, params, strict=True) if np.any(p))
    jax.tree.map(np.testing.assert_array_equal, read_checkpoint(killed, 8), [variables, training])
    lines = read_lines(whole)
    assert read_lines(killed) == lines
    assert [line["step"] for line in lines if "eval/AP" in line] == [6, 8]
    assert {line["step"]: line["l1_loss"] > 0 for line in lines if "l1_loss" in line} == {
        2: False, 3: False, 4: False, 6: True, 8: True
    }  # fmt: skip
