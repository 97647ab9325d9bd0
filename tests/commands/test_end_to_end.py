"""train.py and eval.py, from the command line to the files they leave."""

import json
import shutil
import signal
import socket
import time
from functools import partial
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from training.metric_lines import read_lines

from jaxdet import model_file
from jaxdet.commands import command_line, evaluate
from jaxdet.training.saved import SavedCheckpoints

NUM_STEPS = 24
CONFIGS = Path(__file__).parents[1] / "training"
YOLOX, RETINANET = CONFIGS / "tiny_yolox_config.py", CONFIGS / "tiny_retinanet_config.py"


def read_checkpoint(workdir, step):
    folder = workdir / "checkpoints" / str(step)
    with ocp.StandardCheckpointer() as checkpointer:
        return [checkpointer.restore(folder / item) for item in ("variables", "training")]


def wait_for(path, process):
    while not path.exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)


@pytest.mark.both_ends
def test_a_run_leaves_everything_to_look_at(trained):
    config = json.loads((trained.workdir / "config.json").read_text())
    assert config["model"]["backbone"]["width"] == 4
    suppress = config["model"]["roi"]["suppress"]
    assert suppress["max_candidates"] == 2000, "a default that the file does not name"
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
    lines = trained.out.splitlines()
    assert f"settings that are not the defaults (all: {trained.workdir}/config.json):" in lines
    (line,) = (line for line in lines if line.startswith("  optimizer: "))
    assert line == (
        "  optimizer: base_batch_size=8 learning_rate=0.02 milestones=(12,) warmup_steps=4"
    )
    assert len(lines) < 50
    assert "AP50" in trained.out
    for folder in ("pictures", "checkpoints"):
        assert str(trained.workdir / folder) in trained.out
    assert f"tensorboard --logdir={trained.workdir}" in trained.out
    # Once at most: the run of another test may have drawn them.
    assert trained.err.count("drawing 24 pictures of shapes into") <= 1
    assert trained.err.count("step 12: reloaded the parameters of step 8, the best so far") == 1


def test_a_run_killed_half_way_and_resumed_ends_with_the_same_bits(trained, place, start, run):
    """A second one on its folder is refused meanwhile, and harms nothing."""
    workdir = place.folder / "killed"
    process = start("train.py", workdir)
    wait_for(workdir / "run.lock", process)
    second = run("train.py", f"--workdir={workdir}")
    assert second.status == 1 and len(second.err.splitlines()) == 1
    assert f"{workdir} belongs to another run: process {process.pid} on " in second.err
    wait_for(workdir / "checkpoints" / "9", process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert (workdir / "run.lock").exists()

    config = (workdir / "config.json").read_text()
    # Another setting, though the schedule has no use for it.
    process = start("train.py", workdir, "--config.optimizer.final_ratio=0.5")
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert "another config so far: optimizer.final_ratio was 0.0 and is 0.5" in err
    assert not (workdir / "run.lock").exists()
    assert (workdir / "config.json").read_text() == config
    step = out.split("resuming after step ")[1].split(";")[0]
    resumed = json.loads((workdir / f"config.{step}.json").read_text())
    assert resumed["optimizer"]["final_ratio"] == 0.5
    starts = json.loads((workdir / "run.json").read_text())["starts"]
    assert [start["step"] for start in starts] == [0, int(step)]
    assert starts[0]["config"] != starts[1]["config"]
    assert starts[0]["variables"] != starts[1]["variables"]
    used = command_line.read(["", f"--workdir={workdir}"]).config
    assert used.optimizer.final_ratio == 0.5, "what it used last, where no config is named"
    jax.tree.map(
        np.testing.assert_array_equal,
        read_checkpoint(workdir, NUM_STEPS),
        read_checkpoint(trained.workdir, NUM_STEPS),
    )
    assert read_lines(workdir) == read_lines(trained.workdir)
    assert (workdir / "eval.json").read_text() == (trained.workdir / "eval.json").read_text()


def test_two_processes_one_of_which_is_killed_train_as_one_with_two_devices(place, start):
    """The other one ends with a line; both start again."""
    short = ("--config.num_steps=3", "--config.eval_every=0", "--config.log_every=1")
    short += ("--config.evaluation.name=voc", "--config.log_batches")
    train = partial(start, "train.py", config=RETINANET)
    apart, alone = place.folder / "two_processes", place.folder / "one_process"

    def start_two():
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        joined = ("--distributed", f"--coordinator=127.0.0.1:{port}", "--num_processes=2")
        joined += ("--config.checkpoint_every=1", "--config.heartbeat_seconds=10")
        return [train(apart, *short, *joined, f"--process_id={i}") for i in (0, 1)]

    first, second = start_two()
    wait_for(apart / "checkpoints" / "1", first)
    second.send_signal(signal.SIGKILL)
    _, errors = first.communicate(timeout=60)
    assert first.returncode != 0
    assert "the same command, given to all processes again, resumes" in errors.splitlines()[-1]
    second.communicate()
    for process in start_two():
        printed, errors = process.communicate()
        assert process.returncode == 0, errors
        assert "resuming after step" in printed or process.args[-1] == "--process_id=1"

    process = train(alone, *short, devices=2)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    whole, *parts = (
        {line["step"]: line["images"] for line in map(json.loads, path.read_text().splitlines())}
        for path in (alone / "batches.0.jsonl", *sorted(apart.glob("batches.*.jsonl")))
    )
    assert whole == {step: parts[0][step] + parts[1][step] for step in (1, 2, 3)}
    for one, other in zip(read_lines(apart), read_lines(alone), strict=True):
        assert one.keys() == other.keys()
        measured = [key for key in one if one[key] is not None]
        assert [one[k] for k in measured] == pytest.approx([other[k] for k in measured], rel=1e-5)
    measured = json.loads((apart / "eval.json").read_text())
    assert measured["images"] == 8
    counts = ["images", "objects", "ignored", "unreadable", "left_out"]
    assert list(measured) == ["mAP", "per_class", *counts]
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
    assert not (workdir / model_file.NAME).exists(), "it is not done"
    assert (workdir / "checkpoints" / str(step)).is_dir()


@pytest.mark.parametrize("named", [True, False])
def test_a_finished_run_says_so_and_writes_nothing(trained, run, named):
    def stamps():
        return {path: path.stat().st_mtime_ns for path in trained.workdir.rglob("*")}

    before = stamps()
    config = {} if named else {"config": None}
    ended = run("train.py", f"--workdir={trained.workdir}", **config)
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


def test_eval_of_a_damaged_latest_takes_the_one_before_and_says_so(trained, place, run):
    workdir = shutil.copytree(trained.workdir, place.folder / "damaged_latest")
    before = int(min((workdir / "checkpoints").iterdir(), key=lambda path: int(path.name)).name)
    (workdir / "checkpoints" / str(NUM_STEPS) / "variables" / "_METADATA").write_text("{")
    ended = run("eval.py", f"--workdir={workdir}", "--checkpoint=latest")
    assert ended.status == 0 and f"checkpoints/{NUM_STEPS} is damaged" in ended.err
    assert before < NUM_STEPS and f"checkpoint {before} (latest) on test" in ended.out
    named = run("eval.py", f"--workdir={workdir}", f"--checkpoint={NUM_STEPS}")
    assert named.status == 1 and f"checkpoints/{NUM_STEPS} is damaged" in named.err


def test_results_of_another_checkpoint_than_the_best_have_a_file_of_their_own():
    assert evaluate._name_results("test", "best", own="test") == "eval.json"
    assert evaluate._name_results("test", "latest", own="test") == "eval.latest.json"
    assert evaluate._name_results("a/b", "8", own="test") == "eval_a-b.8.json"


def test_eval_of_another_split_writes_its_proposals_and_leaves_the_results(trained, place, start):
    workdir = shutil.copytree(trained.workdir, place.folder / "proposing")
    before = (workdir / "eval.json").read_text()
    options = ("--split=train", f"--write_proposals={workdir}/{{split}}.npz")
    options += (f"--results={workdir}/{{split}}.json", "--config.eval_flip")
    process = start("eval.py", workdir, *options, "--config.evaluation.name=voc", config=None)
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert out.index("16 images with ") < out.index("proposals of "), "printed before it is written"
    assert "(best) on train" in out and f"16 images are written to {workdir}/train.npz" in out
    assert "eval_flip was False and is True" in err
    items = json.loads((workdir / "train.json").read_text())
    with np.load(workdir / "train.npz") as written:
        assert len(items) == len(written["scores"]) > 0
    assert {item["category_id"] for item in items} <= {1, 2}
    results = json.loads((workdir / "eval_train.json").read_text())
    assert f"all   {results['mAP']:8.3f}" in out and "AP50" not in out
    assert (workdir / "eval.json").read_text() == before
    with np.load(workdir / "train.npz") as written:
        assert len(written["ids"]) == 16 and written["counts"].max() <= 10
        assert written["boxes"].shape == (written["counts"].sum(), 4)


def test_tensorflow_is_never_imported(trained, place):
    assert not (place.folder / "tensorflow_was_imported").exists()


def test_yolox_that_resumes_before_its_final_steps_ends_with_the_same_bits(place, start):
    """Mosaics and drawn heights before, no mosaics and an L1 loss behind, averages all along."""
    whole, resumed = place.folder / "yolox", place.folder / "yolox_resumed"
    train = partial(start, "train.py", config=YOLOX)
    out, err = train(whole, "--config.keep_latest=3").communicate()
    assert "AP50" in out, err
    # As it was behind its third step, but for the lines of its log, which resuming cuts; the final
    # steps begin behind the fourth.
    later = shutil.ignore_patterns("6", "8", "eval.json", "report*", model_file.NAME)
    shutil.copytree(whole, resumed, ignore=later)
    out, err = train(resumed, "--config.keep_latest=3").communicate()
    assert "resuming after step 3;" in out, err

    variables, training = read_checkpoint(whole, 8)
    assert training.keys() == {"step", "opt_state", "params", "batch_stats"}
    averages, params = (jax.tree.leaves(tree["params"]) for tree in (variables, training))
    assert all((a != p).any() for a, p in zip(averages, params, strict=True) if np.any(p))
    jax.tree.map(np.testing.assert_array_equal, read_checkpoint(resumed, 8), [variables, training])
    models = [folder / model_file.NAME for folder in (whole, resumed)]
    assert models[0].read_bytes() == models[1].read_bytes()
    best, _ = read_checkpoint(whole, SavedCheckpoints(whole / "checkpoints").best)
    jax.tree.map(np.testing.assert_array_equal, model_file.read(models[0])[0].variables, best)
    lines = read_lines(whole)
    assert read_lines(resumed) == lines
    assert [line["step"] for line in lines if "eval/AP" in line] == [6, 8]
    assert {line["step"]: line["l1_loss"] > 0 for line in lines if "l1_loss" in line} == {
        2: False, 3: False, 4: False, 6: True, 8: True
    }  # fmt: skip
