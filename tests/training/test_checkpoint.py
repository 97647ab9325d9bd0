import contextlib
import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdet.training import leftovers
from jaxdet.training import state as states
from jaxdet.training.checkpoint import Checkpoints
from jaxdet.training.optimizer import build_optimizer
from jaxdet.training.saved import SavedCheckpoints
from jaxdet.types import UserError


def make_state(step=0, *, width=3, name="conv", norm=True, ema=False):
    """A state whose numbers tell its step; the averages are 100 more than the variables."""
    tx, _ = build_optimizer(
        learning_rate=0.1, base_batch_size=1, batch_size=1, num_steps=9, frozen=("stem",)
    )
    variables = {
        "params": {"stem": {"kernel": jnp.ones(2)}, name: {"kernel": jnp.ones((2, width))}}
    }
    if norm:
        variables["batch_stats"] = {"bn": {"mean": jnp.zeros(3)}}
    state = states.create(variables, tx, ema=ema)
    state = state.replace(ema=jax.tree.map(lambda leaf: leaf + 100, state.ema))
    return jax.tree.map(lambda leaf: leaf + step, state)


@pytest.fixture
def checkpoints(tmp_path):
    opened = Checkpoints(tmp_path / "checkpoints", metric="AP")
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Saved: step 1 with AP 0.2, 2 with 0.5, 3 with 0.4, 4 without evaluation."""
    opened = Checkpoints(tmp_path_factory.mktemp("run"), metric="AP")
    for step, ap in [(1, 0.2), (2, 0.5), (3, 0.4), (4, None)]:
        opened.save(make_state(step), None if ap is None else {"AP": ap, "AP50": 1 - ap})
    opened.close()
    return opened


@pytest.mark.parametrize("which, step", [("latest", 4), ("best", 2), (2, 2), ("4", 4)])
def test_the_latest_and_the_best_are_kept(saved, which, step):
    reopened = SavedCheckpoints(saved._directory)
    assert reopened.find(which) == step
    restored = reopened.restore(which, like=jax.eval_shape(make_state))
    expected = make_state(step)
    assert jax.tree.structure(restored) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, restored, expected)
    reopened.close()


def test_so_many_of_the_latest_and_of_the_best_are_kept_as_is_asked(tmp_path):
    checkpoints = Checkpoints(tmp_path, metric="AP", keep_latest=2, keep_best=3)
    for step, ap in enumerate([0.1, 0.5, 0.4, 0.2, 0.3, None, float("nan"), 0.0], 1):
        checkpoints.save(make_state(step), None if ap is None else {"AP": ap})
    checkpoints.close()
    kept = sorted(int(path.name) for path in tmp_path.iterdir() if path.name.isdecimal())
    assert kept == [2, 3, 5, 7, 8]


def test_the_best_is_one_that_was_evaluated(saved, checkpoints):
    assert saved.best == 2
    assert checkpoints.best is None
    checkpoints.save(make_state(1))
    checkpoints.save(make_state(2), {"AP": float("nan")})
    assert checkpoints.best is None
    for step, ap in [(3, 0.1), (4, 0.3), (5, 0.3), (6, 0.2)]:
        checkpoints.save(make_state(step), {"AP": ap})
    assert checkpoints.best == 5, "of equals the later one"


def test_others_are_deleted_and_the_message_lists_what_is_left(saved):
    with pytest.raises(UserError, match=r"no checkpoint 3 in .*; found latest, best and 2, 4"):
        saved.find(3)


def test_a_checkpoint_is_judged_later_and_may_be_the_best_then(checkpoints):
    for step, results in [(1, {"AP": 0.5}), (2, None), (3, None)]:
        checkpoints.save(make_state(step), results)
    assert checkpoints.best == 1 and not checkpoints.is_judged(3)
    checkpoints.judge(3, {"AP": float("nan")})
    assert checkpoints.best == 1 and not checkpoints.is_judged(3)
    checkpoints.judge(3, {"AP": 0.75})
    assert checkpoints.best == 3 and checkpoints.is_judged(3)


def test_a_metric_that_is_not_finite_is_never_the_best(checkpoints):
    for step, ap in [(1, 0.1), (2, float("nan"))]:
        checkpoints.save(make_state(step), {"AP": ap})
    assert (checkpoints.find("best"), checkpoints.find("latest")) == (1, 2)


def test_another_metric_may_choose_the_best(tmp_path):
    checkpoints = Checkpoints(tmp_path, metric="AP50")
    for step, value in [(1, 0.9), (2, 0.5)]:
        checkpoints.save(make_state(step), {"AP": 1 - value, "AP50": value})
    assert checkpoints.find("best") == 1
    checkpoints.close()


def test_the_best_is_chosen_among_those_of_one_metric(tmp_path):
    checkpoints = Checkpoints(tmp_path, metric="AR")
    checkpoints.save(make_state(1), {"AR": 0.9})
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path, metric="AP")
    for step, ap in [(2, 0.3), (3, 0.2)]:
        checkpoints.save(make_state(step), {"AP": ap})
    checkpoints.close()
    assert checkpoints.find("best") == 2
    assert SavedCheckpoints(tmp_path).find("best") == 2, "step 1 is gone"


@pytest.mark.parametrize("which", ["latest", "best", 3])
def test_an_empty_folder_has_no_checkpoint(checkpoints, which):
    with pytest.raises(UserError, match=r"no checkpoint in .*checkpoints"):
        checkpoints.restore(which, like=make_state())


@pytest.mark.parametrize(
    "wanted, message",
    [
        (dict(width=5), r"params/conv/kernel: wanted \(2, 5\) float32, found \(2, 3\) float32"),
        (dict(name="head"), r"params/head/kernel: wanted \(2, 3\) float32, found nothing"),
        (dict(norm=False), r"batch_stats/bn/mean: wanted nothing, found \(3,\) float32"),
    ],
)
def test_a_checkpoint_that_does_not_fit_names_the_leaf(saved, wanted, message):
    with pytest.raises(UserError, match=message):
        saved.restore("latest", like=make_state(**wanted))
    with pytest.raises(UserError, match=message):
        saved.restore_variables("latest", like=make_state(**wanted).variables)


def test_another_optimizer_does_not_fit(saved):
    like = states.create(make_state().variables, optax.adam(1.0))
    with pytest.raises(UserError, match="opt_state/0/count: wanted .*int32, found nothing"):
        saved.restore("latest", like=like)


def test_variables_are_restored_without_an_optimizer(saved):
    variables = saved.restore_variables("best", like=jax.eval_shape(make_state).variables)
    jax.tree.map(np.testing.assert_array_equal, variables, make_state(2).variables)


def test_variables_without_statistics_are_restored_without(checkpoints):
    checkpoints.save(make_state(1, norm=False))
    found = checkpoints.restore_variables("latest", like=make_state(norm=False).variables)
    assert set(found) == {"params"}


@pytest.mark.parametrize("norm", [True, False])
def test_averages_are_what_prediction_reads_and_all_is_restored(checkpoints, norm):
    state = make_state(1, norm=norm, ema=True)
    checkpoints.save(state, {"AP": 0.5})
    like = jax.eval_shape(lambda: make_state(norm=norm, ema=True))
    restored = checkpoints.restore("latest", like=like)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    variables = checkpoints.restore_variables("best", like=make_state(norm=norm).variables)
    assert np.all(variables["params"]["conv"]["kernel"] == 102)
    assert jax.tree.structure(variables) == jax.tree.structure(state.eval_variables)
    jax.tree.map(np.testing.assert_array_equal, variables, state.eval_variables)


@pytest.mark.parametrize(
    "ema, message",
    [
        (False, r"beside the averages of config.ema_decay\): wanted nothing, found \(3,\) float32"),
        (True, r"beside the averages of config.ema_decay\): wanted \(3,\) float32, found nothing"),
    ],
)
def test_averages_are_not_begun_or_dropped_on_the_way(checkpoints, ema, message):
    checkpoints.save(make_state(1, ema=not ema))
    with pytest.raises(
        UserError, match=r"does not fit the config: batch_stats/bn/mean \(" + message
    ):
        checkpoints.restore("latest", like=jax.eval_shape(lambda: make_state(ema=ema)))


def test_a_checkpoint_without_averages_holds_nothing_for_them(saved):
    reopened = SavedCheckpoints(saved._directory)
    items = reopened._manager.item_metadata(4)
    assert set(items["variables"].tree) == {"params", "batch_stats"}
    assert set(items["training"].tree) == {"step", "opt_state"}
    reopened.close()


# Where reading fails, tensorstore reports to an event loop that orbax has closed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("files", ["*", "variables/*", "training/*", "metrics/*", "variables/d/*"])
@pytest.mark.parametrize("remove", [True, False])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    saved, tmp_path, caplog, files, remove
):
    folder = shutil.copytree(saved._directory, tmp_path / "damaged")
    spoil(folder / "4", files, remove)
    checkpoints = Checkpoints(folder, metric="AP")
    restored = checkpoints.restore("latest", like=jax.eval_shape(make_state))
    assert restored.step == checkpoints.latest == 2
    (line,) = (record.getMessage() for record in caplog.records if record.name == "jaxdet")
    assert re.search("damaged/4 is damaged: .*; remove this folder to use the one before", line)
    checkpoints.save(make_state(4), {"AP": 0.6})  # It is not in the way.
    checkpoints.close()
    assert {path.name for path in folder.iterdir()} == {"4", "4.damaged"}
    assert SavedCheckpoints(folder).restore("latest", like=jax.eval_shape(make_state)).step == 4


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_where_no_other_is_left_or_one_is_named_damage_is_an_error(saved, tmp_path):
    folder = shutil.copytree(saved._directory, tmp_path / "copy")
    spoil(folder / "2", "variables/d/*", False)
    like = jax.eval_shape(make_state)
    for which in (2, "best"):
        with pytest.raises(UserError, match="copy/2 is damaged: .*; remove .* to begin anew"):
            SavedCheckpoints(folder).restore(which, like=like)
    shutil.rmtree(folder / "2")
    (folder / "4" / "metrics" / "metrics").unlink()
    with pytest.raises(UserError, match="copy/4 is damaged: metrics/metrics is missing"):
        SavedCheckpoints(folder)


HALF = '{"AP": 0.'


@pytest.mark.parametrize("content", [HALF, "\0" * 20, '{"AP": "x"}', "[]", "7", "[" * 10**5])
def test_a_checkpoint_whose_result_cannot_be_read_is_left_out(saved, tmp_path, content):
    """As it is after a loss of power; orbax would read the results of all to begin with."""
    folder = shutil.copytree(saved._directory, tmp_path / "damaged")
    (folder / "2" / "metrics" / "metrics").write_text(content)
    assert SavedCheckpoints(folder).find("best") == 4
    (folder / "4" / "metrics" / "metrics").write_text(content)
    with pytest.raises(UserError, match="2 is damaged: metrics/metrics cannot be read; remove"):
        SavedCheckpoints(folder)


@pytest.mark.parametrize("content", ["null", "{}"])
def test_a_checkpoint_without_results_is_read(saved, tmp_path, content):
    folder = shutil.copytree(saved._directory, tmp_path / "copy")
    (folder / "4" / "metrics" / "metrics").write_text(content)
    reader = SavedCheckpoints(folder)
    assert (reader.find("best"), reader.find("latest")) == (2, 4)


def test_the_best_is_the_latest_where_none_was_judged(checkpoints):
    checkpoints.save(make_state(1))
    checkpoints.save(make_state(2))
    assert checkpoints.best is None
    assert checkpoints.find("best") == 2


def test_what_a_run_that_goes_on_has_removed_is_looked_for_anew(tmp_path, caplog):
    writer = Checkpoints(tmp_path, metric="AP")
    writer.save(make_state(1), {"AP": 0.1})
    writer.check_saved()
    readers = [SavedCheckpoints(tmp_path) for _ in range(3)]
    for step in (2, 3):
        writer.save(make_state(step), {"AP": step / 10})
    writer.close()
    like = jax.eval_shape(make_state)
    for which, reader in zip(["latest", "best"], readers, strict=False):
        assert reader.restore(which, like=like).step == 3
    with pytest.raises(UserError, match="no checkpoint 1 in .*; found latest, best and 3"):
        readers[2].restore(1, like=like)
    assert not [each for each in caplog.records if each.name == "jaxdet"]


@pytest.mark.parametrize("ask", [lambda each: each.latest, lambda each: each.find("latest")])
def test_the_latest_is_one_that_is_whole(checkpoints, ask):
    for step in range(1, 5):
        checkpoints.save(make_state(step))
        assert (checkpoints._directory / str(ask(checkpoints))).is_dir()


@pytest.mark.parametrize("file", ["metrics/metrics", "training/_METADATA", "variables/_METADATA"])
def test_an_older_checkpoint_that_is_damaged_is_set_aside_and_not_removed(saved, tmp_path, file):
    """It may be the best: what its weights are read from is whole in two of these."""
    folder = shutil.copytree(saved._directory, tmp_path / "damaged")
    (folder / "2" / file).write_text("")
    files = {path.name for path in (folder / "2").rglob("*")}
    checkpoints = Checkpoints(folder, metric="AP")
    checkpoints.save(make_state(5))
    checkpoints.close()
    assert {path.name for path in folder.iterdir()} == {"2.damaged", "5"}
    assert {path.name for path in (folder / "2.damaged").rglob("*")} == files


def spoil(folder, files, remove):
    for path in [path for each in folder.glob(files) for path in (each, *each.rglob("*"))]:
        if path.is_file():
            path.unlink() if remove else path.write_text("")


def test_half_removed_steps_keep_no_run_from_starting(saved, tmp_path):
    like = jax.eval_shape(make_state)
    files = sorted(path for path in (saved._directory / "2").rglob("*") if path.is_file())
    for stage in (1, 2, len(files) // 2, len(files)):
        folder = shutil.copytree(saved._directory, tmp_path / str(stage))
        for path in files[:stage]:
            (folder / path.relative_to(saved._directory)).unlink()
        checkpoints = Checkpoints(folder, metric="AP")
        assert checkpoints.restore("latest", like=like).step == 4
        if stage in (1, len(files)):
            checkpoints.save(make_state(5), {"AP": 0.6})
            checkpoints.close()
            assert [path.name for path in folder.iterdir()] == ["5"]
        else:
            checkpoints._manager.close()


def test_a_kill_while_an_old_step_is_removed_leaves_whole_steps_only(tmp_path, monkeypatch):
    """At each of the calls that change the folder: the process ends there."""
    like = jax.eval_shape(make_state)
    for fatal in range(4):
        folder, calls = tmp_path / str(fatal), []

        def die(*arguments, calls=calls, fatal=fatal, before=leftovers.shutil.rmtree, **more):
            calls.append(arguments)
            if len(calls) > fatal:
                raise Killed
            return before(*arguments, **more)

        checkpoints = Checkpoints(folder, metric="AP")
        checkpoints.save(make_state(1))
        checkpoints._manager.wait_until_finished()
        with monkeypatch.context() as patched, contextlib.suppress(Killed):
            patched.setattr(leftovers.shutil, "rmtree", die)
            for step in (2, 3, 4):
                checkpoints.save(make_state(step))
            checkpoints.close()
        reopened = Checkpoints(folder, metric="AP")
        assert not reopened._left_out
        restored = reopened.restore("latest", like=like)
        assert int(restored.step) >= 1
        reopened.save(make_state(9))
        reopened.close()
        assert [path.name for path in folder.iterdir()] == ["9"]


class Killed(BaseException):
    pass


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of 4 MB, where one may be mounted."""
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(tmp_path)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no disk can be mounted here")
    yield tmp_path
    subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def test_a_full_disk_costs_a_line_and_no_checkpoint_before(small_disk, caplog, capsys):
    rng = np.random.default_rng(0)
    state = make_state(1).replace(params={"w": rng.random((250, 1000), np.float32)}, opt_state={})
    checkpoints = Checkpoints(small_disk / "run", metric="AP")
    checkpoints.save(state)
    checkpoints.check_saved()
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(25 * 10**5))
    for step in (2, 3):
        checkpoints.save(state.replace(step=np.int32(step)))
        checkpoints._settle()  # As the next save does.
        with pytest.raises(UserError, match=f"step {step} could not be saved: No space left on"):
            checkpoints.check_saved()
        assert sorted(path.name for path in (small_disk / "run").iterdir()) == ["1"]
    assert checkpoints.latest == 1
    restored = checkpoints.restore("latest", like=state)
    np.testing.assert_array_equal(restored.params["w"], state.params["w"])
    ballast.unlink()
    checkpoints.save(state.replace(step=np.int32(4)))
    checkpoints.check_saved()
    checkpoints.close()
    assert [path.name for path in (small_disk / "run").iterdir()] == ["4"]
    said = [record.getMessage() for record in caplog.records if record.name == "jaxdet"]
    assert said == [
        "warning: the checkpoint of step 2 could not be saved: No space left on device; that of "
        "step 1 stays; the next save tries again",
        "checkpoints are saved again: that of step 4 is",
    ]
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("failing", ["save", "wait_until_finished"])
def test_a_save_that_the_disk_refuses_is_tried_again(checkpoints, monkeypatch, caplog, failing):
    """As above, at once or in the background, where no disk can be mounted."""
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    checkpoints.save(make_state(1))
    checkpoints.check_saved()
    with monkeypatch.context() as patched:
        patched.setattr(checkpoints._manager, failing, mock.Mock(side_effect=[full, None, None]))
        patched.setattr(checkpoints._manager, "all_steps", lambda: [1])
        checkpoints.save(make_state(2))
        with pytest.raises(UserError, match="could not be saved: No space left on device; that of"):
            checkpoints.check_saved()
    checkpoints.save(make_state(3))
    checkpoints.check_saved()
    assert checkpoints.latest == 3 and "checkpoints are saved again" in caplog.text


def test_what_is_not_finite_is_not_saved(checkpoints):
    checkpoints.save(make_state(1))
    state = make_state(2)
    state.params["conv"]["kernel"] = state.params["conv"]["kernel"].at[1, 2].set(np.inf)
    message = "params/conv/kernel is not finite at step 2; .* step 1 is saved"
    with pytest.raises(UserError, match=message):
        checkpoints.save(state)
    assert checkpoints.latest == 1


def test_a_step_is_not_saved_twice(checkpoints):
    checkpoints.save(make_state(1))
    with pytest.raises(ValueError, match="step 1 already exists"):
        checkpoints.save(make_state(1))


def test_a_kill_in_the_middle_of_a_save_leaves_the_last_checkpoint(tmp_path):
    program = textwrap.dedent("""
        import os, signal, sys
        import numpy as np
        from jaxdet.training.checkpoint import Checkpoints
        from jaxdet.training.state import TrainState

        checkpoints = Checkpoints(sys.argv[1], metric="AP")
        for step in (1, 2):
            params = {"w": np.full((2000, 2000), step, np.float32)}
            checkpoints.save(TrainState(np.int32(step), params, {}, {}))
            if step == 1:
                checkpoints._manager.wait_until_finished()
        os.kill(os.getpid(), signal.SIGKILL)
    """)
    ended = subprocess.run([sys.executable, "-c", program, str(tmp_path)], env=dict(os.environ))
    assert ended.returncode == -signal.SIGKILL
    assert any("2" in path.name for path in tmp_path.iterdir()), "the second save had not begun"
    checkpoints = Checkpoints(tmp_path, metric="AP")
    assert checkpoints.latest == 1
    like = states.TrainState(np.int32(0), {"w": np.zeros((2000, 2000), np.float32)}, {}, {})
    restored = checkpoints.restore("latest", like=like)
    assert np.all(restored.params["w"] == 1)
    # The broken one is out of the way, so the run can go on.
    checkpoints.save(restored.replace(step=np.int32(2)))
    checkpoints.close()
    assert SavedCheckpoints(tmp_path).latest == 2
