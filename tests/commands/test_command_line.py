"""The command line: what is read, and each mistake in one line."""

import errno
from pathlib import Path

import pytest
from commands.conftest import CONFIG

from jaxdet.commands import command_line, config_files
from jaxdet.types import UserError

SAMPLES = "config.model.roi.sample"


def read(*arguments, config=CONFIG):
    return command_line.read(["train.py", f"--config={config}", *arguments])


@pytest.mark.parametrize("command", ["train.py", "eval.py"])
def test_help_is_the_usage_and_every_flag(run, command):
    ended = run(command, "--help", config=None)
    assert ended.status == 0 and f"python {command} --" in ended.out
    for flag in ("--config FILE", "--config.SETTING VALUE", "--workdir FOLDER", "--debug"):
        assert flag in ended.out
    assert ("--against" in ended.out) == (command == "train.py")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--config.num_step=3"], "no setting config.num_step; did you mean config.num_steps?"),
        (
            ["--config.model.roi.smaple.num_samples=3"],
            f"model.roi.smaple.num_samples; did you mean {SAMPLES}.num_samples?",
        ),
        (["--config.model.roi.sample.num_sample=3"], f"did you mean {SAMPLES}.num_samples?"),
        (["--config.model.roi.sample.quota=3"], f"; {SAMPLES} has num_samples, positive_fraction"),
        (["--config.model.num_samples=3"], "did you mean config.model."),
        (["--config.model.roi_num_samples=3"], f"it is {SAMPLES}.num_samples now"),
        (["--config.model.roi=3"], "config.model.roi has settings of its own: assign, "),
        (["--config.model.num_classes=3"], "there is no setting config.model.num_classes"),
        (["--config.seed.x=3"], "there is no setting config.seed.x; did you mean config.seed?"),
        (["--config.seed=abc"], "config.seed wants int, found 'abc'"),
        (["--config.seed={[]: 1}"], "config.seed wants int, found '{[]: 1}'"),
        (["--config.seed"], "config.seed wants a value: int"),
        (["--config.seed", "--config.init_from="], "config.seed wants a value: int"),
        (["--config.detector="], "config.detector wants a name"),
        (["--config.model.backbone.name"], "config.model.backbone.name wants a name"),
        (["--config.model.dtype.name=x"], "there is no setting config.model.dtype.name"),
        (["--config.num_steps=0 epochs"], "config.num_steps wants at least a step, found '0 ep"),
        (["--config.data.resize=800"], "config.data.resize wants (int or tuple of int, int) or ()"),
        (["--config.data.resize=(800,)"], "config.data.resize wants (int or tuple of int, int)"),
        (["--config.seed=True"], "config.seed wants int, found True"),
        (["--config.data.canvas=(64,'a')"], "config.data.canvas wants (int, int), found (64, 'a')"),
        (["--config.data.canvas=(64,)"], "config.data.canvas wants (int, int), found (64,)"),
        (["--config.data.classes=cat"], "config.data.classes wants tuple of str, found 'cat'"),
        (["--wrkdir=runs"], "unknown flag --wrkdir; did you mean --workdir?"),
        (["more"], "unexpected argument 'more'"),
        (["--workdir=gs://bucket/run"], "wants a folder of this machine, found the URL gs://"),
        (["--config.detector=slow_rcnn"], "unknown detector 'slow_rcnn'; known: fast_rcnn, "),
        (["--config.model.backbone.name=resnat"], "unknown module 'resnat'; known: resnet, "),
        (["--config.data.source=vok"], "unknown data source 'vok'; there are shapes, voc, coco"),
        (["--config.data.options.num_trian=3"], "did you mean config.data.options.num_train?"),
        (["--config.num_steps=0"], "config.num_steps wants at least 1, found 0"),
        (["--config.num_steps=12epocs"], 'num_steps wants steps, or such as "12 epochs"; found'),
        (["--config.num_steps=1.5"], "config.num_steps wants int or str, found 1.5"),
        (["--config.optimizer.clip_norm=-1.0"], "config.optimizer.clip_norm wants at least 0"),
        (["--config.optimizer.final_ratio=-1.0"], "config.optimizer.final_ratio wants at least 0"),
        (["--config.ema_decay=1.0"], "config.ema_decay wants less than 1, found 1.0"),
        (["--config.pictures_every=-1"], "config.pictures_every wants at least 0, found -1"),
        (["--config.log_every=0"], "config.log_every wants at least 1, found 0"),
        (["--config.optimizer.base_batch_size=0"], "optimizer.base_batch_size wants at least 1"),
        (["--config.optimizer.momentun=0"], "did you mean config.optimizer.momentum?"),
        (["--config.data.vertical_flp=0"], "did you mean config.data.vertical_flip?"),
        (["--config.evaluation.name=vok"], "unknown evaluation.name 'vok'; did you mean 'voc'?"),
        (["--config.evaluation.eleven_point=1"], "no setting config.evaluation.eleven_point"),
        (
            ["--config.evaluation.name=voc", "--config.evaluation.eleven_pont=1"],
            "did you mean config.evaluation.eleven_point?",
        ),
    ],
)
def test_a_mistake_says_what_is_wanted_and_found(arguments, message):
    with pytest.raises(UserError) as error:
        read(*arguments)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--config.num_step=3"], "there is no setting config.num_step"),
        (["--config.data.root="], "data.root is empty"),
        (["--config.model.backbone.depth=51"], "config.model: depth must be one of"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(run, tmp_path, arguments, message):
    ended = run("train.py", f"--workdir={tmp_path / 'run'}", *arguments)
    assert ended.status == 1
    assert ended.err.startswith("error: ") and message in ended.err
    assert ended.err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_settings_are_said_as_absl_and_a_shell_allow():
    config = read(
        *("--config.model.roi.sample.num_samples", "128"),
        "--config.model.roi.suppress.max_candidates=300",
        "--config.optimizer.clip_norm=10",
        "--config.optimizer.milestones=(3,5)",
        "--config.data.vertical_flip=.5",
        "--config.data.resize=((640,672),1333)",
        "--config.data.use_difficult",
        "--config.data.keep_empty=false",
        "--config.model.rpn.assign.negative_iou=(0.1, 0.3)",
        "--config.model.pixels.padding=114",
        "--config.model.roi.coder.max_ratio=inf",
        "--config.data.root=~/photographs",
        "--config.eval_every=3 epochs",
    ).config
    assert config.model.roi.sample.num_samples == 128
    assert config.model.roi.sample.positive_fraction == 0.25, "the default"
    assert config.model.roi.suppress.max_candidates == 300
    assert config.optimizer.clip_norm == 10.0 and type(config.optimizer.clip_norm) is float
    assert config.optimizer.milestones == (3, 5)
    assert config.data.vertical_flip == 0.5 and config.data.horizontal_flip == 0.5
    assert config.data.resize == ((640, 672), 1333)
    assert config.data.use_difficult and not config.data.keep_empty
    assert config.model.rpn.assign.negative_iou == (0.1, 0.3)
    assert config.model.pixels.padding == 114
    assert config.model.roi.coder.max_ratio == float("inf")
    assert config.data.root == str(Path.home() / "photographs")
    assert config.eval_every == "3 epochs"


def test_flags_take_a_space_and_a_home(tmp_path):
    command = command_line.read(["train.py", "--config", str(CONFIG), "--workdir", "~/run"])
    assert command.workdir == Path.home() / "run"
    assert command.config.num_steps == 24


def test_the_workdir_is_named_after_the_config_and_its_argument():
    for argument, workdir in [("", "runs/tiny_config"), (":12", "runs/tiny_config-12")]:
        assert read(config=f"{CONFIG}{argument}").workdir == Path(workdir)
    assert read(config=f"{CONFIG}:12").config.num_steps == 12


def test_a_saved_config_is_that_of_its_folder(tmp_path, monkeypatch):
    folder = tmp_path / "mine"
    folder.mkdir()
    config_files.save(read().config, folder / "config.json")
    assert read(config=folder / "config.json").workdir == Path("runs/mine")
    monkeypatch.chdir(folder)
    assert read(config="config.json").workdir == Path("runs/mine")


def test_what_a_choice_decides_on_begins_with_its_own_settings():
    drawn = read("--config.data.options.max_objects=2").config.data
    assert drawn.options.num_train == 16 and drawn.options.max_objects == 2
    other = read("--config.data.source=coco", "--config.data.options.images=here").config.data
    assert other.options.to_dict() == {
        "annotations": "annotations/instances_{split}.json",
        "images": "here",
    }
    assert read("--config.data.source=tfds").config.data.options.to_dict() == {}
    assert read().config.evaluation.to_dict() == {"name": "coco", "limits": (1, 10, 100)}
    voc = read("--config.evaluation.name=voc").config.evaluation.to_dict()
    assert voc == {"name": "voc", "eleven_point": False, "inclusive": False, "iou_threshold": 0.5}
    backbone = read("--config.model.backbone.name=vgg").config.model.backbone.to_dict()
    assert backbone == {"name": "vgg", "width": 64, "norm": "none", "frozen_stages": 0}
    assert read("--config.model.neck.name=none").config.model.neck.to_dict() == {"name": "none"}


def test_a_choice_that_is_made_already_changes_nothing():
    names = ("model.backbone.name=resnet", "model.neck.name=fpn", "evaluation.name=coco")
    assert read(*(f"--config.{name}" for name in names)).config == read().config
    assert read("--config.data.source=voc", "--config.data.source=shapes").config == read().config
    assert read("--config.detector=rpn", "--config.detector=faster_rcnn").config == read().config


def test_another_detector_keeps_what_is_said_and_known(caplog):
    config = read("--config.detector", "rpn", "--config.evaluation.name", "proposals").config
    assert config.model.rpn.sample.num_samples == 32 and config.model.backbone.depth == 10
    assert "roi" not in config.model
    assert "settings of faster_rcnn in config.model.roi are not for rpn" in caplog.text


def test_another_detector_of_a_saved_config_has_its_own_defaults(tmp_path):
    config_files.save(read().config, tmp_path / "config.json")
    for detector in ("yolox", "retinanet"):
        said = read(f"--config.detector={detector}").config
        saved = read(f"--config.detector={detector}", config=tmp_path / "config.json").config
        assert saved.model == said.model
    assert said.model.neck.to_dict() | {"channels": 0} == {
        "name": "fpn",
        "channels": 0,
        "num_levels": 5,
        "start_level": 1,
        "extra": "on_input",
        "relu_before_extra": False,
    }


def test_a_workdir_may_have_a_colon(tmp_path):
    workdir = tmp_path / "10:00"
    workdir.mkdir()
    config_files.save(read().config, workdir / "config.json")
    assert command_line.read(["eval.py", f"--workdir={workdir}"]).config == read().config


def test_sides_and_batches_that_are_not_said_follow_others():
    config = read("--config.data.canvas=(96,64)").config
    assert config.data.resize == (64, 96)
    assert config.eval_batch_size == 8
    assert read("--config.data.resize=()").config.data.resize == (64, 64)
    assert read("--config.eval_batch_size=0", "--config.batch_size=16").config.eval_batch_size == 16


def test_what_followed_in_a_saved_config_follows_there_too(tmp_path):
    saved = tmp_path / "config.json"
    config_files.save(read("--config.data.resize=()").config, saved)
    changed = read("--config.data.canvas=(96,64)", "--config.batch_size=16", config=saved).config
    assert (changed.data.resize, changed.eval_batch_size) == ((64, 96), 16)
    said = ("--config.data.resize=(48,64)", "--config.eval_batch_size=4")
    config_files.save(read(*said).config, saved)
    changed = read("--config.data.canvas=(96,64)", "--config.batch_size=16", config=saved).config
    assert (changed.data.resize, changed.eval_batch_size) == ((48, 64), 4)


@pytest.mark.parametrize(
    "error, line",
    [
        (OSError(errno.ENOSPC, "No space left on device", "a/b"), "a/b: No space left on device"),
        (OSError("cut\noff"), "cut off"),
        (UserError("no\nsuch"), "no such"),
    ],
)
def test_a_failing_disk_is_one_line(capfd, error, line):
    assert end(error) == 1
    assert capfd.readouterr().err == f"error: {line}\n"


def test_the_traceback_of_our_own_mistakes_is_kept_or_shown(capfd, tmp_path):
    workdir = tmp_path / "run"
    assert end(KeyError("boxes"), f"--workdir={workdir}") == 1
    assert capfd.readouterr().err == (
        f"error: KeyError: 'boxes' (where: {workdir / 'traceback.txt'}, or --debug)\n"
    )
    assert "in command\n    raise error" in (workdir / "traceback.txt").read_text()
    assert end(RuntimeError("\udcff.jpg"), f"--workdir={workdir}") == 1
    assert "\\udcff.jpg" in (workdir / "traceback.txt").read_text()
    assert end(KeyError("boxes"), "--debug") == 1
    assert "in command\n    raise error" in capfd.readouterr().err


def end(error, *arguments):
    """The status of a command that fails so."""

    def command(_):
        raise error

    argv = ["train.py", f"--config={CONFIG}", *arguments]
    with pytest.raises(SystemExit) as exit:
        command_line.run(command, argv, usage="", define=lambda parser: None)
    return exit.value.code


def test_a_workdir_that_is_a_file_is_one_line(run, trained, tmp_path):
    (tmp_path / "file").write_text("mine")
    ended = run("train.py", f"--workdir={tmp_path / 'file'}")
    assert (ended.status, ended.err.count("\n")) == (1, 1)
    assert str(tmp_path / "file") in ended.err
    assert (tmp_path / "file").read_text() == "mine"


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
    ended = run("eval.py", f"--workdir={tmp_path / 'nothing'}", config=None)
    assert (ended.status, ended.err.count("\n")) == (1, 1)
    assert "name a config" in ended.err and "nothing has no config.json" in ended.err


def test_a_file_for_proposals_has_its_suffix(trained, run):
    ended = run("eval.py", f"--workdir={trained.workdir}", "--write_proposals=proposals/{split}")
    assert (ended.status, ended.err.count("\n")) == (1, 1)
    assert "--write_proposals wants a file.npz, found proposals/test" in ended.err
