from types import SimpleNamespace

import jax
import numpy as np
import pytest
from training.metric_lines import read_lines
from training.toy_run import Killed, kill_at, make_run, spoil

from jaxdet.training.history import RATE_FACTOR
from jaxdet.training.numerics import MAX_SKIPPED, BrokenRun, Numerics
from jaxdet.training.spikes import FEWEST, Spikes
from jaxdet.training.steps import put_state
from jaxdet.training.watching import Profile
from jaxdet.training.window import Step
from jaxdet.training.writer import Writer
from jaxdet.types import UserError

NO_WRITER = Writer("nowhere", active=False)


@pytest.fixture(scope="module")
def run(toy):
    """Trains the toy with steps that can be skipped and slowed down, and with averages."""
    return make_run(toy, guarded=True, scaled=True, ema_decay=0.9, ema_ramp=5)


def follow(run, toy, *, rates, left_out=(), until=12):
    """The state after steps with a rate each, done by hand."""
    state = run.start()
    for n in range(until):
        batch = toy.batch(n)
        if n in left_out:
            before = jax.device_get(state)
            batch = batch._replace(boxes=batch.boxes * np.float32("nan"))
        state, metrics = run.step(state, batch, n, rates(n))
        assert int(metrics.counts["skipped"]) == (n in left_out)
        if n in left_out:
            now = jax.device_get(state)
            for name in ("params", "batch_stats", "ema"):
                jax.tree.map(
                    np.testing.assert_array_equal, getattr(now, name), getattr(before, name)
                )
            old, new = (jax.tree.leaves(each.opt_state) for each in (before, now))
            differing = [a for a, b in zip(old, new, strict=True) if np.any(a != b)]
            assert differing == [n], "the count of the schedule alone goes on"
            assert int(now.step) == n + 1
    return jax.device_get(state)


def test_a_skipped_step_leaves_the_state_as_it_was_and_is_counted(run, toy, tmp_path):
    log = run(tmp_path, on_batch=spoil(4, 7), numbers=Numerics("skip"))
    expected = follow(run, toy, rates=lambda n: 1.0, left_out=(4, 7))
    jax.tree.map(np.testing.assert_array_equal, log.state, expected)
    lines = [line for line in read_lines(tmp_path) if "loss" in line]
    assert [line["skipped"] for line in lines] == [0, 0, 1, 1, 0, 0]
    assert all(np.isfinite(line["loss"]) for line in lines)


def test_so_many_skipped_steps_in_a_row_end_the_run():
    def steps(count, skipped):
        means = {"loss": np.float32("nan" if skipped else 1)}
        return [Step(np.arange(2), means, {"skipped": np.int32(skipped)})] * count

    numbers = Numerics("skip")
    for _ in range(2):
        numbers.look_at(MAX_SKIPPED, steps(MAX_SKIPPED, True), NO_WRITER)
        numbers.look_at(MAX_SKIPPED + 1, steps(1, False), NO_WRITER)
    numbers.look_at(MAX_SKIPPED, steps(MAX_SKIPPED, True), NO_WRITER)
    with pytest.raises(BrokenRun, match="more than 100 steps in a row were skipped.* at step 101"):
        numbers.look_at(MAX_SKIPPED + 1, steps(1, True), NO_WRITER)


@pytest.mark.parametrize(
    "terms, line",
    [
        (
            dict(a_loss=np.nan, b_loss=1, loss=np.nan),
            "the loss .* 3: a_loss nan, loss nan; f",
        ),
        (
            dict(loss=2, gradient_norm=np.inf),
            "the gradient .* 3: gradient_norm inf; finite: loss",
        ),
        (dict(loss=2, gradient_norm=4), "a parameter .* 3: finite: loss 2, gradient_norm 4"),
    ],
)
def test_the_line_names_the_terms_the_step_and_the_images(terms, line):
    means = {name: np.float32(value) for name, value in terms.items()}
    good = {name: np.float32(0) for name in terms}
    steps = [
        Step(np.arange(place, place + 20), means if broken else good, {"skipped": broken})
        for place, broken in ((0, False), (20, True), (40, True))
    ]
    numbers = Numerics("go_back", name_images=lambda places: [f"{p}.jpg" for p in places])
    with pytest.raises(BrokenRun, match=rf"{line}.*; its images: 20.jpg, .*35.jpg and 4 more$"):
        numbers.look_at(4, steps, NO_WRITER)


@pytest.fixture(scope="module")
def gone_back(run, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("gone_back")
    log = run(workdir, on_batch=spoil(7), numbers=Numerics("go_back"))
    return SimpleNamespace(workdir=workdir, log=log)


def test_a_run_goes_back_to_its_last_checkpoint_with_half_the_rate(run, toy, gone_back):
    expected = follow(run, toy, rates=lambda n: 1.0 if n < 6 else 0.5)
    jax.tree.map(np.testing.assert_array_equal, gone_back.log.state, expected)
    lines = read_lines(gone_back.workdir)
    assert [line["step"] for line in lines if "loss" in line] == [3, 4, 6, 8, 9, 12]
    assert [line for line in lines if RATE_FACTOR in line] == [
        {"step": 6, RATE_FACTOR: 0.5, "broken_step": 8}
    ]
    rates = {line["step"]: line["learning_rate"] for line in lines if "loss" in line}
    assert rates[8] < 0.6 * rates[6]
    assert gone_back.log.closed == 2, "batches are opened anew"


@pytest.mark.parametrize("killed_at", [8, 10])
def test_a_run_that_went_back_resumes_with_the_half_rate(run, gone_back, tmp_path, killed_at):
    spoilt, killed = spoil(7), kill_at(killed_at)
    with pytest.raises(Killed):
        run(tmp_path, on_batch=lambda n, b: killed(n, spoilt(n, b)), numbers=Numerics("go_back"))
    resumed = run(tmp_path, numbers=Numerics("go_back"))
    jax.tree.map(np.testing.assert_array_equal, resumed.state, gone_back.log.state)
    assert read_lines(tmp_path) == read_lines(gone_back.workdir)


def test_before_the_first_checkpoint_a_run_goes_back_to_its_start(run, toy, tmp_path):
    log = run(tmp_path, on_batch=spoil(1), numbers=Numerics("go_back"))
    expected = follow(run, toy, rates=lambda n: 0.5)
    jax.tree.map(np.testing.assert_array_equal, log.state, expected)


def test_a_trace_ends_where_a_run_goes_back(run, tmp_path, monkeypatch):
    told, spoilt = [], spoil(7)
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: told.append("on"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: told.append("off"))

    def on_batch(n, batch):
        told.append(n)
        return spoilt(n, batch)

    profile = Profile(tmp_path / "profile", (7, 9))
    run(tmp_path, on_batch=on_batch, numbers=Numerics("go_back"), profile=profile)
    assert told == [*range(7), "on", 7, "off", *range(6, 12)]


def test_a_run_goes_back_five_times_at_most(run, tmp_path):
    with pytest.raises(UserError, match="not finite at step 8: .*went back 5 times already"):
        run(tmp_path, on_batch=spoil(7, times=99), numbers=Numerics("go_back"))
    found = [line for line in read_lines(tmp_path) if RATE_FACTOR in line]
    assert [line[RATE_FACTOR] for line in found] == [2.0**-n for n in range(1, 6)]


def test_a_step_that_is_scaled_moves_by_so_much(run, toy):
    start = jax.device_get(run.start())
    moved = [
        jax.device_get(run.step(put_state(start), toy.batch(0), 0, rate)[0]) for rate in (1.0, 0.25)
    ]
    whole, quarter = (each.params["head"]["bias"] - start.params["head"]["bias"] for each in moved)
    np.testing.assert_allclose(quarter, whole / 4, rtol=1e-5)
    assert np.any(whole)


def as_steps(*losses):
    return [Step(np.arange(1), {"loss": np.float32(loss)}, {}) for loss in losses]


def test_the_worst_spike_of_a_window_is_found_once_a_median_is_known():
    spikes = Spikes(3.0, lambda step: [])
    assert spikes.find(2, as_steps(1, 50)) is None, "too early"
    count = FEWEST + 2
    assert spikes.find(count, as_steps(*[1] * FEWEST)) is None
    assert spikes.find(count + 3, as_steps(2.9, 6, 4)) == (count + 2, 6, 6)
    found = spikes.find(count + 5, as_steps(9, np.nan))
    assert found.step == count + 5 and np.isnan(found.loss)
    assert spikes.find(count + 6, as_steps(1)) is None, "what is not finite is not in the median"


def test_the_batch_of_a_spike_is_drawn(run, tmp_path):
    drawn = []

    def draw(step):
        drawn.append(step)
        return [("batch", np.zeros((4, 4, 3), np.uint8))]

    spikes = Spikes(3.0, draw)
    spikes.find(FEWEST, as_steps(*[1] * FEWEST))
    run(tmp_path, on_batch=spoil(4), numbers=Numerics("skip", spikes=spikes))
    assert drawn == [4]
    assert (tmp_path / "pictures" / "0000005_batch.png").is_file()
