from types import SimpleNamespace

import jax
import pytest
from training.toy_run import make_run

from jaxdet.training.watching import Profile, check_profile_steps, device_memory
from jaxdet.types import UserError


def test_the_fullest_device_is_told_and_a_cpu_tells_nothing(monkeypatch):
    assert device_memory() == {}
    devices = [
        SimpleNamespace(memory_stats=lambda peak=peak: {"peak_bytes_in_use": peak * 2**30})
        for peak in (3, 5)
    ]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    assert device_memory() == {"device_memory_gib": 5.0}


def test_a_trace_of_some_steps_is_written(toy, tmp_path):
    make_run(toy)(tmp_path, num_steps=4, profile=Profile(tmp_path / "profile", (2, 3)))
    (trace,) = (tmp_path / "profile").rglob("*.xplane.pb")
    assert trace.stat().st_size > 0


@pytest.mark.parametrize(
    "steps, traced", [((), []), ((2, 3), [2, 3]), ((4, 9), [4, 5]), ((1, 1), [1]), ((6, 9), [])]
)
def test_the_steps_of_the_trace_are_those_of_the_setting(monkeypatch, tmp_path, steps, traced):
    on, found = [], []
    monkeypatch.setattr(jax.profiler, "start_trace", on.append)
    monkeypatch.setattr(jax.profiler, "stop_trace", on.clear)
    profile = Profile(tmp_path, steps)
    for step in range(1, 6):
        profile.before(step)
        found += [step] * len(on)
        profile.after(step, {})
    profile.close()
    assert found == traced and not on


def test_there_is_one_trace_also_where_a_run_goes_back(monkeypatch, tmp_path):
    on, folders = [], []
    monkeypatch.setattr(jax.profiler, "start_trace", on.append)
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: folders.append(on.pop()))
    profile = Profile(tmp_path, (2, 4))
    for step in (1, 2, 3):
        profile.before(step)
        profile.after(step, {})
    profile.close()  # Step 3 was broken.
    for step in (2, 3, 4):
        profile.before(step)
        profile.after(step, {})
    profile.close()
    assert folders == [tmp_path] and not on


@pytest.mark.parametrize("failing", ["start_trace", "stop_trace"])
@pytest.mark.parametrize(
    "text, said", [("no space left\nat a place", "no space left"), ("", "RuntimeError")]
)
def test_a_disk_that_refuses_a_trace_does_not_end_the_run(
    monkeypatch, tmp_path, caplog, failing, text, said
):
    calls = []

    def call(name):
        def called(*given):
            calls.append(name)
            if name == failing:
                raise RuntimeError(text)

        return called

    for name in ("start_trace", "stop_trace"):
        monkeypatch.setattr(jax.profiler, name, call(name))
    profile = Profile(tmp_path, (1, 2))
    for step in (1, 2, 1, 2):
        profile.before(step)
        profile.after(step, {})
    profile.close()
    assert calls == ["start_trace", "stop_trace"][: 1 + (failing == "stop_trace")]
    (record,) = caplog.records
    assert record.getMessage() == f"warning: steps are not traced: {tmp_path}: {said}"


@pytest.mark.parametrize("steps", [(0, 2), (3, 2)])
def test_steps_that_are_no_range_are_refused(steps):
    with pytest.raises(UserError, match=r"config.profile_steps wants \(first, last\) .* found"):
        check_profile_steps(steps)
    check_profile_steps(())
    check_profile_steps((1, 1))
