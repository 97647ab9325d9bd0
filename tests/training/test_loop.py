import json
import re
import shutil
import signal
import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from training.metric_lines import read_lines
from training.toy_run import Killed, kill_at, make_run, send

from jaxdet import whole_files
from jaxdet.training import history
from jaxdet.training.checkpoint import Checkpoints
from jaxdet.training.multiscale import draw_height
from jaxdet.training.saved import SavedCheckpoints
from jaxdet.training.steps import put_state
from jaxdet.training.window import Window
from jaxdet.training.writer import Writer
from jaxdet.types import Metrics, UserError


@pytest.fixture(scope="module")
def run(toy):
    """Trains the toy in a workdir, from its latest checkpoint if there is one."""
    return make_run(toy)


# A height stays for three steps: the saves at 4 and 8 lie between two draws.
@pytest.fixture(scope="module")
def run_yolox(toy):
    """`run` with all that a training of YOLOX adds."""
    return make_run(toy, ema_decay=0.9, ema_ramp=5, heights=(32, 64), height_every=3, seed=2)


@pytest.fixture(scope="module")
def unbroken(run, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("unbroken")
    return SimpleNamespace(workdir=workdir, log=run(workdir))


def test_a_run_logs_evaluates_and_saves_when_it_should(unbroken):
    lines = read_lines(unbroken.workdir)
    assert [line["step"] for line in lines if "loss" in line] == [3, 4, 6, 8, 9, 12]
    assert [line["step"] for line in lines if "eval/AP" in line] == [6, 12]
    assert len(unbroken.log.evaluated) == len(unbroken.log.drawn) == 2
    assert unbroken.log.closed == 1
    assert unbroken.log.outcome.stopped == 0
    assert unbroken.log.outcome.results == {"AP": unbroken.log.evaluated[-1]}


def test_a_line_holds_the_means_and_sums_since_the_line_before(run, toy, tmp_path, unbroken):
    run(tmp_path, log_every=1, num_steps=3)
    single = [line for line in read_lines(tmp_path) if "loss" in line]
    window = read_lines(unbroken.workdir)[0]
    np.testing.assert_allclose(window["loss"], np.mean([line["loss"] for line in single]))
    assert window["objects"] == sum(toy.batch(n).valid.sum() for n in range(3))


def test_the_first_line_tells_the_seconds_of_the_first_step(unbroken):
    lines = [json.loads(x) for x in (unbroken.workdir / "metrics.jsonl").read_text().splitlines()]
    assert ["first_step_seconds" in line for line in lines] == [True] + [False] * (len(lines) - 1)
    assert all(line["images_per_second"] > 0 for line in lines if "loss" in line)


def test_an_evaluation_without_anything_to_find_is_no_best_and_ends_nothing(run, tmp_path):
    scores = iter([None, 0.5, None])
    log = run(tmp_path, eval_every=4, evaluate=lambda variables: {"AP": next(scores)})
    assert int(log.state.step) == 12 and log.outcome.results == {"AP": None}
    checkpoints = SavedCheckpoints(tmp_path / "checkpoints")
    assert (checkpoints.best, checkpoints.latest) == (8, 12)
    checkpoints.close()
    past = history.read(tmp_path / "metrics.jsonl", "AP", 99)
    assert past.evaluated == {4, 8, 12} and past.scores[8] == 0.5
    assert np.isnan([past.scores[4], past.scores[12]]).all()


def fail_at(*places):
    """An evaluation by the head's bias, of which some fail."""
    made = []

    def evaluate(variables):
        made.append(variables)
        if len(made) in places:
            raise OSError("gone")
        return {"AP": float(variables["params"]["head"]["bias"][0])}

    return evaluate


@pytest.mark.parametrize("place, settings", [(1, {}), (2, {}), (1, dict(reload_best_at=(6,)))])
def test_an_evaluation_that_failed_is_done_where_the_run_resumes(run, tmp_path, place, settings):
    whole = run(tmp_path / "whole", **settings)
    with pytest.raises(OSError, match="gone"):
        run(tmp_path / "failed", evaluate=fail_at(place), **settings)
    resumed = run(tmp_path / "failed", **settings)
    assert len(resumed.evaluated) == len(resumed.drawn) == 3 - place
    assert resumed.outcome.results == whole.outcome.results
    jax.tree.map(np.testing.assert_array_equal, resumed.state, whole.state)
    ends = []
    for name in ("failed", "whole"):
        lines = [line for line in read_lines(tmp_path / name) if "eval/AP" in line]
        checkpoints = SavedCheckpoints(tmp_path / name / "checkpoints")
        steps = sorted(path.name for path in (tmp_path / name / "checkpoints").glob("[0-9]*"))
        ends.append((lines, checkpoints.best, checkpoints.latest, steps))
        checkpoints.close()
    assert ends[0] == ends[1]
    assert run(tmp_path / "failed", **settings).evaluated == [], "it is done once"


@pytest.mark.parametrize("at, settings", [(6, {}), (12, {}), (12, dict(eval_every=0))])
def test_an_evaluation_whose_line_a_kill_has_cost_is_done_again(
    run, tmp_path, monkeypatch, at, settings
):
    """It was repeated where the run resumed, and killed behind the number of the checkpoint."""
    place = 1 if at == 6 or settings else 2
    with pytest.raises(OSError, match="gone"):
        run(tmp_path, evaluate=fail_at(place), **settings)

    def die(*given):
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(Writer, "results", die)
        run(tmp_path, **settings)
    checkpoints = Checkpoints(tmp_path / "checkpoints", metric="AP")
    assert checkpoints.latest == at and checkpoints.is_judged(at)
    checkpoints.close()
    run(tmp_path, **settings)
    steps = [line["step"] for line in read_lines(tmp_path) if "eval/AP" in line]
    assert steps == ([12] if settings else [6, 12])


def test_a_finished_run_whose_log_is_gone_is_not_evaluated_again(run, tmp_path):
    run(tmp_path)
    (tmp_path / "metrics.jsonl").unlink()
    assert run(tmp_path).evaluated == []


def test_a_repeated_evaluation_that_the_disk_refuses_is_no_end(run, tmp_path, monkeypatch, caplog):
    with pytest.raises(OSError, match="gone"):
        run(tmp_path, evaluate=fail_at(2))
    with monkeypatch.context() as patched:
        patched.setattr(whole_files, "write_json", refuse)
        log = run(tmp_path)
    assert log.outcome.results and "metrics is not written: No space left" in caplog.text


def refuse(*given):
    raise OSError(28, "No space left on device")


def test_an_evaluation_that_comes_to_be_due_is_done_where_the_run_resumes(run, tmp_path):
    run(tmp_path, eval_every=0, on_batch=send(signal.SIGTERM, at=3))
    run(tmp_path, eval_every=4)
    steps = [line["step"] for line in read_lines(tmp_path) if "eval/AP" in line]
    assert steps == [4, 8, 12]


@pytest.mark.parametrize("slow", ["batches", "step"])
def test_a_wait_for_data_is_told_from_a_slow_step(run, tmp_path, slow):
    def delay(_, passed):
        time.sleep(0.05)
        return passed

    def slow_step(*args):
        return delay(0, run.step(*args))

    settings = {"on_batch": delay} if slow == "batches" else {"step": slow_step}
    run(tmp_path, num_steps=6, **settings)
    lines = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    waits = [line["data_wait"] for line in lines if "loss" in line]
    assert len(waits) == 3
    assert all(0 <= wait <= 1 for wait in waits)
    assert (max(waits) > 0.5) == (slow == "batches")


@pytest.mark.parametrize("done", [True, False])
def test_a_wait_counts_where_the_steps_before_it_are_done(done):
    window = Window()
    window.add(Metrics({"loss": np.float32(1)}, {}), np.arange(1))
    window._metrics.append(SimpleNamespace(is_ready=lambda: done))
    window.wait_for(time.sleep(0.01) for _ in range(2))
    assert (window._waited >= 0.01) == done


@pytest.mark.parametrize("killed_at", [2, 7, 11])
def test_a_killed_run_resumes_to_the_same_bits_and_lines(run, unbroken, tmp_path, killed_at):
    with pytest.raises(Killed):
        run(tmp_path, on_batch=kill_at(killed_at))
    resumed = run(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, resumed.state, unbroken.log.state)
    assert read_lines(tmp_path) == read_lines(unbroken.workdir)


@pytest.fixture(scope="module")
def unbroken_yolox(run_yolox, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("unbroken_yolox")
    return SimpleNamespace(workdir=workdir, log=run_yolox(workdir))


@pytest.mark.parametrize("killed_at", [2, 7, 11])
def test_a_killed_run_with_averages_and_heights_resumes_to_the_same_bits(
    run_yolox, unbroken_yolox, tmp_path, killed_at
):
    assert len({draw_height(2, n, heights=(32, 64), every=3) for n in range(12)}) == 2
    with pytest.raises(Killed):
        run_yolox(tmp_path, on_batch=kill_at(killed_at))
    resumed = run_yolox(tmp_path)
    assert resumed.state.ema
    jax.tree.map(np.testing.assert_array_equal, resumed.state, unbroken_yolox.log.state)
    assert read_lines(tmp_path) == read_lines(unbroken_yolox.workdir)


def test_averages_are_evaluated_and_drawn(run_yolox, tmp_path):
    seen = []

    def see(variables, matrices=None):
        seen.append(jax.tree.map(np.array, variables))
        return {"AP": 0.5} if matrices is None else []

    log = run_yolox(tmp_path, evaluate=see, draw=see, num_steps=2)
    for variables in seen:
        jax.tree.map(np.testing.assert_array_equal, variables, log.state.eval_variables)
    assert len(seen) == 2
    assert np.any(seen[0]["params"]["head"]["bias"] != log.state.params["head"]["bias"])


@pytest.mark.parametrize(
    "settings, evaluated",
    [
        (dict(final_steps=4, final_eval_every=1), [6, 9, 10, 11, 12]),
        (dict(final_steps=7, final_eval_every=2), [3, 6, 8, 10, 12]),
        (dict(final_steps=4, final_eval_every=0), [3, 6, 9, 12]),
        (dict(final_steps=0, final_eval_every=1), [3, 6, 9, 12]),
    ],
)
def test_final_steps_are_evaluated_at_a_step_of_their_own(run, tmp_path, settings, evaluated):
    every = 6 if evaluated[0] == 6 else 3
    run(tmp_path, eval_every=every, **settings)
    lines = read_lines(tmp_path)
    assert [line["step"] for line in lines if "eval/AP" in line] == evaluated


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_step_and_saves(run, unbroken, tmp_path, number):
    before = signal.getsignal(number)
    stopped = run(tmp_path, on_batch=send(number, at=4))
    assert signal.getsignal(number) is before
    assert (stopped.outcome.stopped, int(stopped.state.step)) == (number, 5)
    assert stopped.outcome.results is None
    assert stopped.closed == 1
    resumed = run(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, resumed.state, unbroken.log.state)


def test_a_signal_at_an_evaluation_changes_no_line(run, unbroken, tmp_path):
    stopped = run(tmp_path, on_batch=send(signal.SIGTERM, at=5))
    assert int(stopped.state.step) == 6 and len(stopped.evaluated) == 1
    run(tmp_path)
    assert read_lines(tmp_path) == read_lines(unbroken.workdir)


def count_slots(toy, first, last):
    """What the toy's confusion matrix says of some steps, counted slowly."""
    matrix = np.zeros((2, 3), int)
    for n in range(first, last):
        for slots in toy.batch(n).valid:
            matrix[0, sum(slots)] += 1
    return matrix


def test_matrices_are_in_the_lines_and_their_sums_since_the_last_pictures_are_drawn(
    run, toy, tmp_path
):
    log = run(tmp_path, pictures_every=5, checkpoint_every=0)
    lines = [line for line in read_lines(tmp_path) if "loss" in line]
    steps = [line["step"] for line in lines]
    assert steps == [3, 5, 6, 9, 10, 12], "pictures have a line, too"
    for line, first in zip(lines, [0, *steps], strict=False):
        assert line["confusion"] == count_slots(toy, first, line["step"]).tolist()
    assert len(log.drawn) == 4 and len(log.evaluated) == 2
    for matrices, first, last in zip(log.drawn, [0, 5, 6, 10], [5, 6, 10, 12], strict=True):
        assert list(matrices) == ["confusion"]
        np.testing.assert_array_equal(matrices["confusion"], count_slots(toy, first, last))


def test_pictures_between_evaluations_change_no_parameter(run, unbroken, tmp_path):
    with pytest.raises(Killed):
        run(tmp_path, pictures_every=5, on_batch=kill_at(7))
    log = run(tmp_path, pictures_every=5)
    jax.tree.map(np.testing.assert_array_equal, log.state, unbroken.log.state)
    steps = [line["step"] for line in read_lines(tmp_path) if "loss" in line]
    assert steps == [3, 4, 5, 6, 8, 9, 10, 12]


def fall(variables):
    """A result that falls while the toy learns: the first evaluation is the best."""
    return {"AP": -float(variables["params"]["head"]["bias"].sum())}


# Saved at 3, 4, 6, 8, 9 and 12: one drop with a checkpoint and one without.
DROPS = dict(evaluate=fall, eval_every=3, reload_best_at=(8, 10))


@pytest.fixture(scope="module")
def dropped(run, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("dropped")
    return SimpleNamespace(workdir=workdir, state=run(workdir, **DROPS).state)


def test_a_drop_takes_the_best_parameters_and_statistics_and_nothing_else(run, toy, dropped):
    state, best = run.start(), None
    for n in range(12):
        if n in (8, 10):
            state = state.replace(**put_state(best))
        state, _ = run.step(state, toy.batch(n), n)
        if n + 1 == 3:
            best = jax.tree.map(np.array, state.variables)
    jax.tree.map(np.testing.assert_array_equal, dropped.state, jax.device_get(state))
    results = [line["eval/AP"] for line in read_lines(dropped.workdir) if "eval/AP" in line]
    assert results[0] == max(results), "the first is the best"


def test_a_drop_takes_the_best_averages_for_both(run_yolox, toy, tmp_path):
    dropped = run_yolox(tmp_path / "unbroken", **DROPS).state
    state, best = run_yolox.start(), None
    for n in range(12):
        if n in (8, 10):
            ema = {"params": best["params"], "batch_stats": best["batch_stats"]}
            state = state.replace(**put_state(best), ema=put_state(ema))
        state, _ = run_yolox.step(state, toy.batch(n), n)
        if n + 1 == 3:
            best = jax.tree.map(np.array, state.eval_variables)
    jax.tree.map(np.testing.assert_array_equal, dropped, jax.device_get(state))
    with pytest.raises(Killed):
        run_yolox(tmp_path / "killed", on_batch=kill_at(9), **DROPS)
    resumed = run_yolox(tmp_path / "killed", **DROPS)
    jax.tree.map(np.testing.assert_array_equal, resumed.state, dropped)


@pytest.mark.parametrize("killed_at", [7, 8, 9, 10, 11])
def test_a_run_killed_around_a_drop_resumes_to_the_same_bits(run, dropped, tmp_path, killed_at):
    with pytest.raises(Killed):
        run(tmp_path, on_batch=kill_at(killed_at), **DROPS)
    resumed = run(tmp_path, **DROPS)
    jax.tree.map(np.testing.assert_array_equal, resumed.state, dropped.state)
    assert read_lines(tmp_path) == read_lines(dropped.workdir)


@pytest.mark.parametrize("stopped_at", [5, 7, 9])
def test_a_run_stopped_around_a_drop_resumes_to_the_same_bits(run, dropped, tmp_path, stopped_at):
    stopped = run(tmp_path, on_batch=send(signal.SIGTERM, at=stopped_at), **DROPS)
    assert int(stopped.state.step) == stopped_at + 1
    resumed = run(tmp_path, **DROPS)
    jax.tree.map(np.testing.assert_array_equal, resumed.state, dropped.state)


def test_a_drop_right_after_the_best_evaluation_changes_nothing(run, unbroken, tmp_path, capsys):
    log = run(tmp_path, reload_best_at=(6,))  # Its result grows, so that step 6 is the best.
    assert "step 6: reloaded the parameters of step 6, the best so far" in capsys.readouterr().err
    jax.tree.map(np.testing.assert_array_equal, log.state, unbroken.log.state)


def test_a_drop_compiles_nothing(run, dropped, tmp_path):
    compiled = []

    def listen(event, seconds, **details):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(details)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        run(tmp_path, **DROPS)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert not compiled


def test_without_an_evaluation_before_the_drop_the_parameters_stay(run, unbroken, tmp_path, capsys):
    log = run(tmp_path, reload_best_at=(5,))
    said = [line for line in capsys.readouterr().err.splitlines() if "step 5" in line]
    assert [line.strip() for line in said] == [
        "step 5: there is no best checkpoint to reload; the parameters stay"
    ]
    jax.tree.map(np.testing.assert_array_equal, log.state, unbroken.log.state)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    "part, line",
    [
        ("", "there is no best checkpoint to reload; the parameters stay"),
        ("variables", "the parameters stay: the checkpoint .*/3 is damaged: "),
    ],
)
def test_a_best_checkpoint_that_is_gone_is_said_and_the_run_goes_on(
    run, tmp_path, capsys, part, line
):
    def remove(n, batch):
        if n == 7:
            shutil.rmtree(tmp_path / "checkpoints" / "3" / part)
        return batch

    log = run(tmp_path, on_batch=remove, **DROPS | dict(reload_best_at=(8,)))
    assert int(log.state.step) == 12
    assert len(re.findall(f"step 8: {line}", capsys.readouterr().err)) == 1


def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_the_checkpoints(run, tmp_path):
    def spoil(n, batch):
        return batch._replace(boxes=batch.boxes * np.float32("nan")) if n == 4 else batch

    with pytest.raises(
        UserError,
        match="the loss is not finite at step 5: box_loss nan, gradient_norm nan, loss nan, "
        "update_ratio nan; its "
        "images: 32, 33, 34, 35, 36, 37, 38, 39; the last good state stays: step 4 is saved, .* a "
        "lower optimizer.learning_rate",
    ):
        run(tmp_path, on_batch=spoil)
    checkpoints = SavedCheckpoints(tmp_path / "checkpoints")
    assert checkpoints.latest == 4
    checkpoints.close()


def test_a_run_without_eval_every_still_ends_with_an_evaluation(run, tmp_path):
    log = run(tmp_path, num_steps=2, eval_every=0, checkpoint_every=0, log_every=0)
    assert len(log.evaluated) == 1
    assert json.loads((tmp_path / "eval.json").read_text()) == {"AP": log.evaluated[0]}
    checkpoints = SavedCheckpoints(tmp_path / "checkpoints")
    assert checkpoints.find("best") == checkpoints.find("latest") == 2
    checkpoints.close()


@pytest.mark.parametrize("failing", ["evaluate", "draw"])
def test_a_failing_evaluation_loses_no_training(run, unbroken, tmp_path, failing):
    def fail(*_):
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        run(tmp_path, checkpoint_every=0, **{failing: fail})
    checkpoints = SavedCheckpoints(tmp_path / "checkpoints")
    assert checkpoints.latest == 6
    checkpoints.close()
    resumed = run(tmp_path, checkpoint_every=0)
    jax.tree.map(np.testing.assert_array_equal, resumed.state, unbroken.log.state)
