import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from types import SimpleNamespace

import pytest

from jaxdet.training import lock
from jaxdet.types import UserError


@pytest.fixture
def owner(tmp_path):
    """Writes the lock of another owner: this process's parent, but for what is said."""

    def write(age=0.0, **said):
        values = lock._describe_process()
        values |= {"pid": os.getppid(), "birth": lock._birth(os.getppid())} | said
        path = tmp_path / lock.NAME
        path.write_text(json.dumps(values))
        os.utime(path, (path.stat().st_atime, path.stat().st_mtime - age))
        return values

    return write


def is_mine(folder):
    return lock._read(folder / lock.NAME) == lock._describe_process() | {
        "started": lock._read(folder / lock.NAME)["started"]
    }


def test_a_folder_is_owned_until_the_end_and_then_as_before(tmp_path):
    with lock.owned(tmp_path):
        assert is_mine(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == [lock.NAME]
    assert not list(tmp_path.iterdir())
    with lock.owned(tmp_path / "new"):
        assert is_mine(tmp_path / "new")
    assert not (tmp_path / "new").exists(), "nothing was written"


def test_the_owner_goes_with_an_exception_too(tmp_path):
    with pytest.raises(KeyboardInterrupt), lock.owned(tmp_path):
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "age, said",
    [(9999, {}), (lock.SILENCE - 9, {"place": "elsewhere", "host": "elsewhere", "pid": 2**30})],
)
def test_a_living_owner_is_named_and_stays(tmp_path, owner, age, said):
    values = owner(age, **said)
    with pytest.raises(UserError) as raised, lock.owned(tmp_path):
        pass
    assert f"process {values['pid']} on {values['host']}, started 2" in str(raised.value)
    assert lock._read(tmp_path / lock.NAME) == values
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    "age, said",
    [
        (0, {"pid": 2**30}),
        (0, {"birth": "an earlier process of that number"}),
        (lock.SILENCE + 9, {"place": "elsewhere"}),
    ],
)
def test_a_dead_owner_is_taken_over(tmp_path, owner, age, said):
    owner(age, **said)
    with lock.owned(tmp_path):
        assert is_mine(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 1}'])
def test_a_lock_that_nobody_can_read_is_nobodys(tmp_path, text):
    (tmp_path / lock.NAME).write_text(text)
    with lock.owned(tmp_path):
        assert is_mine(tmp_path)


def test_other_processes_of_a_run_own_nothing(tmp_path, owner):
    owner()
    with lock.owned(tmp_path, active=False):
        assert not is_mine(tmp_path)


def test_an_owner_shows_life_and_ends_when_it_was_given_up(tmp_path, owner, monkeypatch, capsys):
    ends = []

    class Ended(threading.Event):
        rounds = 2

        def wait(self, seconds):
            self.rounds -= 1
            return self.rounds < 0 or bool(ends)

    monkeypatch.setattr(lock.os, "_exit", ends.append)
    path, mine = tmp_path / lock.NAME, owner(age=1000)
    before = path.stat().st_mtime
    lock._show_life(path, mine, Ended(), threading.RLock())
    assert path.stat().st_mtime > before + 900 and not ends
    path.unlink()
    lock._show_life(path, mine, Ended(), threading.RLock())
    assert lock._read(path) == mine, "whoever removed it did not mean a living run"
    owner(started="later")
    lock._show_life(path, mine, Ended(), threading.RLock())
    assert ends == [1] and "belongs to another run" in capsys.readouterr().err


def test_no_sign_of_life_follows_the_end(tmp_path, monkeypatch):
    """The beat that had begun before the release ends first; one that comes later does nothing."""
    reading, read = threading.Event(), lock._read
    slow = SimpleNamespace(on=True)

    def look(path):
        if threading.current_thread() is not threading.main_thread() and slow.on:
            reading.set()
            slow.on = time.sleep(0.3)
        return read(path)

    monkeypatch.setattr(lock, "_read", look)
    monkeypatch.setattr(lock, "BEAT", 0.01)
    written = []
    monkeypatch.setattr(lock.os, "utime", lambda path: written.append(path.exists()))
    with lock.owned(tmp_path):
        assert reading.wait(9)
    time.sleep(0.4)
    assert not list(tmp_path.iterdir()) and all(written)


def test_a_signal_removes_the_lock(tmp_path):
    program = textwrap.dedent("""
        import sys, time
        from jaxdet.training import lock
        with lock.owned(sys.argv[1]):
            print("owned", flush=True)
            time.sleep(60)
    """)
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "owned\n"
    with pytest.raises(UserError, match=f"process {process.pid} on "), lock.owned(tmp_path):
        pass
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == -signal.SIGTERM
    assert not list(tmp_path.iterdir())
