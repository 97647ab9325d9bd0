"""`jaxdet.load`: model files and runs, what is missing, and the programs kept on disk."""

import os
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from prediction import tiny_model

import jaxdet
from jaxdet import model_file
from jaxdet.types import UserError

TRAINING = "absl faster_coco_eval grain ml_collections orbax tensorboardX tensorflow_datasets torch"


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    model_file.write(folder / model_file.NAME, tiny_model.draw_contents())
    return folder


def run_python(code, **environment):
    """What a process of its own prints."""
    environment = {**os.environ, "XLA_FLAGS": "", **environment}
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


def test_what_is_loaded_finds_something(workdir):
    pixels = tiny_model.draw_photograph((70, 50), 0)
    found = jaxdet.load(workdir, cache=False)(pixels)

    assert len(found) == 1 and len(found[0]) >= 5 and np.isfinite(found[0].boxes).all()
