"""train.py and eval.py, from the command line to the files they leave."""

import fcntl
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jaxdet import commands, configuration

ROOT = Path(__file__).parent.parent
CONFIG = Path(__file__).parent / "training" / "tiny_config.py"
NUM_STEPS = 24

# How ml_collections loads a config file.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module.. method:DeprecationWarning")

# Entries of a line that a clock gives.
TIMES = ("first_step_seconds", "images_per_second")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
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
        **{key: value for key, value in os.environ.items() if key != "XLA_FLAGS"},
        "PYTHONPATH": str(trap),
        # The runs compile the same programs.
        "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return SimpleNamespace(folder=folder, environment=environment)


@pytest.fixture(scope="module")
def start(place):
    """Starts a command on a workdir as a process of its own."""

    def start(command, workdir, *arguments):
        return subprocess.Popen(
            [
                sys.executable,
                str(ROOT / command),
                f"--config={CONFIG}",
                f"--workdir={workdir}",
                f"--config.data.root={place.folder / 'data'}",
                *arguments,
            ],
            cwd=ROOT,
            env=place.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.fixture(scope="module")
def trained(place, start):
    """An unbroken run."""
    workdir, out = place.folder / "unbroken", place.folder / "unbroken.txt"
    with (place.folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not out.exists():
            process = start("train.py", workdir)
            printed, errors = process.communicate()
            assert process.returncode == 0, errors
            out.write_text(printed)
    return SimpleNamespace(workdir=workdir, out=out.read_text())


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


def read_lines(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


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


def test_a_run_killed_half_way_and_resumed_ends_with_the_same_bits(trained, place, start):
    workdir = place.folder / "killed"
    process = start("train.py", workdir)
    wait_for(workdir / "checkpoints" / "9", process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL

    process = start("train.py", workdir)
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert "resuming after step" in out
    jax.tree.map(
        np.testing.assert_array_equal,
        read_checkpoint(workdir, NUM_STEPS),
        read_checkpoint(trained.workdir, NUM_STEPS),
    )
    assert read_lines(workdir) == read_lines(trained.workdir)
    assert (workdir / "eval.json").read_text() == (trained.workdir / "eval.json").read_text()


def test_a_run_that_is_told_to_stop_saves_and_says_so(place, start):
    workdir = place.folder / "stopped"
    process = start("train.py", workdir)
    wait_for(workdir / "checkpoints" / "3", process)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM, err
    line = out.splitlines()[-1]
    assert line.startswith("stopped by signal 15; step ") and "Traceback" not in err
    step = int(line.split("step ")[1].split()[0])
    assert step < NUM_STEPS
    assert (workdir / "checkpoints" / str(step)).is_dir()


def test_a_finished_run_says_so_and_writes_nothing(trained, run):
    def stamps():
        return {path: path.stat().st_mtime_ns for path in trained.workdir.rglob("*")}

    before = stamps()
    ended = run("train.py", f"--workdir={trained.workdir}")
    assert ended.status == 0
    assert f"is finished: {NUM_STEPS} of {NUM_STEPS} steps are done" in ended.out
    assert stamps() == before


def test_eval_takes_the_best_checkpoint(trained, place, start):
    workdir = shutil.copytree(trained.workdir, place.folder / "evaluated")
    (workdir / "eval.json").unlink()
    process = start("eval.py", workdir)
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert "(best)" in out and "AP50" in out
    found = json.loads((workdir / "eval.json").read_text())["AP"]
    assert found == max(line["eval/AP"] for line in read_lines(workdir) if "eval/AP" in line)


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
        (["--config.detector=fast_rcnn"], "unknown detector 'fast_rcnn'; known: faster_rcnn"),
        (["--config.optimizer.name=sdg"], "unknown optimizer.name 'sdg'"),
        (["--config.model.norm=frozen"], "config.model.norm is 'frozen', which needs pretrained"),
        (["--config.data.source=voc"], "data source 'voc' has no option"),
        (["--config.data.root="], "data.root is empty"),
        (["--config.batch_size=9"], "config.batch_size 9 does not divide among 8"),
        (["--config.eval_batch_size=9"], "config.eval_batch_size 9 does not divide among 8"),
        (["--config.num_steps=0"], "config.num_steps wants at least 1, found 0"),
        (["--config.data.canvas=(64,)"], "config.data.canvas wants two numbers, found (64,)"),
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
        ("config.model.fpn_chanels = 8", "no setting 'fpn_chanels'; known: depth, "),
        ("config.model.num_classes = 8", "config.model has no key 'num_classes'"),
        ("config.data.horizontal_flp = 0", "config.data has no key 'horizontal_flp'; did you mean"),
        ("config.optimizer.momentun = 0", "config.optimizer has no key 'momentun'; did you mean"),
        ("config.model.frozen_stages = 1", "config.model.frozen_stages is 1, which needs"),
        ("del config.seed", "config lacks the key 'seed'"),
        ("del config.data.train_split", "config.data lacks the key 'train_split'"),
        ("del config.data.max_boxes", "config.data lacks the key 'max_boxes'"),
        ("del config.optimizer.learning_rate", "config.optimizer lacks the key 'learning_rate'"),
        ("config.sed = 1", "config has no key 'sed'; did you mean 'seed'?"),
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


def test_the_workdir_is_named_after_the_config_and_its_argument(monkeypatch):
    for argument, workdir in [("", "runs/tiny_config"), (":12", "runs/tiny_config-12")]:
        monkeypatch.setattr(sys, "argv", ["train.py", f"--config={CONFIG}{argument}"])
        command = configuration.read_command_line(sys.argv)
        assert command.workdir == Path(workdir)
    assert command.config.num_steps == 12


def test_a_config_that_makes_another_run_is_compared_with_the_saved_one(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["train.py", f"--config={CONFIG}"])
    config = configuration.read_command_line(sys.argv).config
    saved = tmp_path / "config.json"
    assert configuration.differing_keys(config, saved) == []
    configuration.save(config, saved)
    assert configuration.differing_keys(config, saved) == []
    config.log_every, config.data.max_boxes = 5, 9  # The same run.
    config.optimizer.learning_rate, config.data.classes = 0.5, ("circle",)
    assert configuration.differing_keys(config, saved) == [
        "data.classes was ['circle', 'square'] and is ['circle']",
        "optimizer.learning_rate was 0.02 and is 0.5",
    ]


def test_frozen_stages_are_left_out_of_the_optimizer(monkeypatch):
    arguments = ["train.py", f"--config={CONFIG}", "--config.init_from=weights.npz"]
    monkeypatch.setattr(sys, "argv", arguments)
    config = configuration.read_command_line(sys.argv).config
    with config.unlocked():
        config.model.frozen_stages = 1
    commands.check(config)
    variables = commands.abstract_variables(config, commands.build_detector(config, num_classes=2))
    tx, _ = commands.make_optimizer(config)
    kept = jax.tree_util.tree_leaves_with_path(jax.eval_shape(tx.init, variables["params"]))
    names = {jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in kept}
    assert not any("layer1/" in name or "stem_" in name for name in names)
    assert any("layer2/" in name for name in names)


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
