import shutil


def test_a_run_that_is_out_of_patience_is_finished(trained, place, run):
    workdir = shutil.copytree(trained.workdir, place.folder / "out_of_patience")
    longer = (f"--workdir={workdir}", "--config.num_steps=48", "--config.min_delta=1.0")
    ended = run("train.py", *longer, "--config.patience=2")
    assert ended.status == 0
    assert (
        "is finished: 24 of 48 steps are done; 2 evaluations were no better than the best "
        "(config.patience); eval.py evaluates it again"
    ) in ended.out


def test_steps_to_profile_that_are_no_range_are_refused_at_once(run):
    ended = run("train.py", "--workdir=nowhere", "--config.profile_steps=(3, 2)")
    assert ended.status == 1
    assert ended.err.splitlines() == [
        "error: config.profile_steps wants (first, last) with 1 <= first <= last, found (3, 2)"
    ]
