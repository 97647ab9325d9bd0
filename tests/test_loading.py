"""`jaxdet.load`: model files and runs, what is missing, and the programs kept on disk."""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from prediction import tiny_model

import jaxdet
from jaxdet import loading, model_file
from jaxdet.commands import command_line, config_files, evaluate, train
from jaxdet.types import UserError

TINY = Path(__file__).parent / "training" / "tiny_config.py"
TRAINING = "absl faster_coco_eval grain ml_collections orbax tensorboardX tensorflow_datasets torch"


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    model_file.write(folder / model_file.NAME, tiny_model.draw_contents("retinanet"))
    return folder


def run_python(code, **environment):
    """What a process of its own with one device and without a cache prints."""
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "1", **environment}
    del environment["JAX_COMPILATION_CACHE_DIR"]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split(), done.stderr


def test_a_run_stands_for_its_model_file(workdir):
    for path in (workdir, str(workdir), workdir / model_file.NAME):
        model = jaxdet.load(path, cache=False)
        assert model.class_names == tiny_model.NAMES and model.category_ids == tiny_model.IDS


def test_a_folder_that_is_no_run_is_one_line(tmp_path):
    with pytest.raises(UserError, match="has neither model.safetensors nor checkpoints"):
        jaxdet.load(tmp_path)
    with pytest.raises(UserError, match="there is no such model file"):
        jaxdet.load(tmp_path / "runs")


@pytest.mark.parametrize(
    "missing, kind, line",
    [
        ("cv2", "model", r'prediction needs OpenCV .*pip install "jaxdet\[predict\]"'),
        ("orbax", "run", r'has no model.safetensors, and .* needs orbax.*"jaxdet\[train\]"'),
    ],
)
def test_what_is_not_installed_is_named(workdir, tmp_path, missing, kind, line):
    (tmp_path / "checkpoints").mkdir()
    code = (
        f"import sys; sys.modules[{missing!r}] = None; import jaxdet\n"
        f"try: jaxdet.load({str(tmp_path if kind == 'run' else workdir)!r})\n"
        "except jaxdet.UserError as error: print(error)"
    )
    printed, _ = run_python(code)

    assert re.search(line, " ".join(printed)), printed


def test_prediction_needs_no_training_and_its_program_is_kept_on_disk(workdir, tmp_path):
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({TRAINING.split()[1:]}))\n"
        "import jax, numpy as np, jaxdet\n"
        "jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)\n"
        f"model = jaxdet.load({str(workdir)!r})\n"
        "found = model(np.random.default_rng(0).integers(0, 255, (50, 60, 3)).astype('uint8'))\n"
        "print(len(found[0]), jax.config.jax_compilation_cache_dir)"
    )
    first, _ = run_python(code, XDG_CACHE_HOME=str(tmp_path))
    programs = {p: p.stat().st_mtime_ns for p in (tmp_path / "jaxdet").glob("jit_predict-*-cache")}
    again, noise = run_python(code, XDG_CACHE_HOME=str(tmp_path))

    assert first == again
    assert int(first[0]) >= 5 and first[1] == str(tmp_path / "jaxdet")
    assert len(programs) == 1 and noise == ""
    assert {p: p.stat().st_mtime_ns for p in programs} == programs


@pytest.mark.parametrize("cache", [False, True, "own"])
def test_a_cache_that_is_set_up_stays_and_another_folder_may_be_named(
    workdir, tmp_path, cache, monkeypatch
):
    monkeypatch.delenv("XDG_CACHE_HOME")
    # A test before may have set it up for this process.
    monkeypatch.setattr(type(jax.config), "jax_compilation_cache_dir", None, raising=False)
    set_up = []
    monkeypatch.setattr(jax.config, "update", lambda name, value: set_up.append((name, value)))
    jaxdet.load(workdir, cache=tmp_path if cache == "own" else cache)
    wanted = {"own": str(tmp_path), True: os.path.expanduser("~/.cache/jaxdet"), False: None}[cache]
    assert [value for _, value in set_up] == [wanted] * (wanted is not None)

    set_up.clear()
    monkeypatch.setattr(type(jax.config), "jax_compilation_cache_dir", "mine", raising=False)
    jaxdet.load(workdir)
    assert set_up == []


@pytest.mark.parametrize("wanted", [True, False])
def test_training_and_evaluation_keep_their_programs_as_the_config_says(
    wanted, tmp_path, monkeypatch
):
    class Reached(Exception):
        pass

    def keep(cache):
        raise Reached(cache)

    monkeypatch.setattr(loading, "keep_programs", keep)
    flag = f"--config.keep_programs={wanted}"
    config = command_line.read(["train.py", f"--config={TINY}", flag]).config
    with pytest.raises(Reached, match=str(wanted)):
        train._train(config, tmp_path, True)
    (tmp_path / "checkpoints").mkdir()
    saved = SimpleNamespace(find=lambda named: 1)
    monkeypatch.setattr(evaluate, "SavedCheckpoints", lambda folder: saved)
    monkeypatch.setattr(config_files, "with_classes_of_run", lambda config, _: config)
    monkeypatch.setattr(config_files, "changes_of_run", lambda *_: [])
    monkeypatch.setattr(config_files, "last_saved", lambda *_: None)
    flags = argparse.Namespace(split="", write_proposals="", results="", checkpoint="latest")
    with pytest.raises(Reached, match=str(wanted)):
        evaluate.evaluate(command_line.Arguments(config, tmp_path, flags))


def test_what_is_loaded_finds_something(workdir):
    pixels = tiny_model.draw_photograph((70, 50), 0)
    found = jaxdet.load(workdir, cache=False)(pixels)

    assert len(found) == 1 and len(found[0]) >= 5 and np.isfinite(found[0].boxes).all()
