"""Recipes and saved configs: read, kept and compared."""

import json
import math

import pytest
from commands.conftest import CONFIG

from jaxdet.commands import command_line, config_files
from jaxdet.types import UserError

LAST_LINE = len(CONFIG.read_text().splitlines())
YOLOX = CONFIG.with_name("tiny_yolox_config.py")


def read(file, *arguments):
    return command_line.read(["train.py", f"--config={file}", *arguments]).config


@pytest.mark.parametrize(
    "edit, message",
    [
        ("config.model.neck.chanels = 8", "did you mean config.model.neck.channels?"),
        ("config.model.num_classes = 8", "there is no setting config.model.num_classes"),
        ("config.model.fpn_channels = 8", "it is config.model.neck.channels now"),
        ("config.data.horizontal_flp = 0", "did you mean config.data.horizontal_flip?"),
        ("config.optimizer.momentun = 0", "did you mean config.optimizer.momentum?"),
        ("del config.batch_size", "config.batch_size is missing: images of a step"),
        ("del config.data.root", "config.data.root is missing: its folder"),
        ("del config.data.max_boxes", "config.data.max_boxes is missing: G, object slots"),
        ("del config.optimizer.learning_rate", "config.optimizer.learning_rate is missing"),
        ("config.sed = 1", "there is no setting config.sed; did you mean config.seed?"),
        ("config.seed = '1'", "config.seed wants int, found '1'"),
        ("config.seed = 2**63", "config.seed wants less than 9223372036854775808, found"),
        ("config.batch_size = 10**20", "config.batch_size wants less than 2147483648, found"),
        ("del config.data.source; config.data.source = 5", "config.data.source wants str, found 5"),
        ("config.evaluation = ConfigDict({'name': ['coco']})", "config.evaluation.name wants str"),
        ("config.data = 3", "TypeError: Could not override field 'data'"),
        ("del config.data; config.data = 3", "config.data wants settings of its own, found 3"),
        ("config.evaluation = 3", "config.evaluation wants settings of its own, found 3"),
        ("config.evaluation = ConfigDict({'nam': 'voc'})", "did you mean config.evaluation.name?"),
        (
            "config.evaluation = ConfigDict({'name': 'voc', 'iou_threshold': 'a'})",
            "config.evaluation.iou_threshold wants float, found 'a'",
        ),
        ("config = dict(config)", "gives no ConfigDict, but {"),
        ("config.seed = sed", f"mine.py:{LAST_LINE}: NameError: name 'sed' is not defined"),
        ("config.seed = = 3", f"mine.py:{LAST_LINE}: SyntaxError: invalid syntax"),
        ("int('one')", f"mine.py:{LAST_LINE}: ValueError: invalid literal"),
    ],
)
def test_a_mistake_in_the_file_is_said(tmp_path, edit, message):
    file = tmp_path / "mine.py"
    end = "    return config"
    file.write_text(CONFIG.read_text().replace(end, f"    {edit}\n{end}"))
    with pytest.raises(UserError) as error:
        read(file)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "config, message", [(None, "name a config"), ("tiny_confg.py", "no config file tiny_confg.py")]
)
def test_a_config_that_is_not_there_is_one_line(run, config, message):
    ended = run("train.py", config=config)
    assert (ended.status, ended.err.count("\n")) == (1, 1)
    assert message in ended.err


@pytest.mark.parametrize(
    "text, argument, message",
    [
        ("def get_konfig(): ...", "", "has no function get_config()"),
        ("def get_config(): ...", ":12", "mine.py takes no argument, found '12'"),
        ("def get_config(number): ...", "", "TypeError: get_config() missing 1 required"),
    ],
)
def test_a_file_without_a_fitting_get_config_is_said(tmp_path, text, argument, message):
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(UserError) as error:
        read(f"{tmp_path / 'mine.py'}{argument}")
    assert message in str(error.value)


def test_a_config_file_runs_once(tmp_path):
    file = tmp_path / "mine.py"
    log = f"with open({str(tmp_path / 'log')!r}, 'a') as log: log.write('run ')\n"
    file.write_text(log + CONFIG.read_text())
    read(file, "--config.seed=3")
    assert (tmp_path / "log").read_text() == "run "


def test_a_config_may_build_on_another_one_of_its_folder(tmp_path):
    """Each folder's own, whatever was loaded before."""
    for size in (4, 12):
        folder = tmp_path / str(size)
        folder.mkdir()
        base = CONFIG.read_text().replace("batch_size = 8", f"batch_size = {size}")
        (folder / "tiny_config.py").write_text(base)
        (folder / "derived.py").write_text(YOLOX.read_text().replace("config.batch_size = 4", ""))
        config = read(folder / "derived.py")
        assert config.batch_size == size and config.detector == "yolox"
    (folder / "tiny_config.py").write_text("\n\n(\n")
    with pytest.raises(UserError, match=r"tiny_config.py:3: SyntaxError"):
        read(folder / "derived.py")


def test_the_config_of_a_run_is_read_from_its_workdir(tmp_path):
    config = read(CONFIG, "--config.optimizer.milestones=(3,5)")
    config.data.resize = ((48, 64), 64)
    config.model.roi.coder.max_ratio = math.inf
    config_files.save(config, tmp_path / "config.json")
    argv = ["eval.py", f"--workdir={tmp_path}"]
    command = command_line.read(argv)
    assert command.config == config and command.workdir == tmp_path
    assert command.config.data.resize == ((48, 64), 64)
    config = command_line.read([*argv, "--config.optimizer.milestones=(4,)"]).config
    assert config.optimizer.milestones == (4,)


@pytest.mark.parametrize("text", ["{", "[]", "3", "[" * 10**5])
def test_a_saved_config_that_is_damaged_is_one_line(run, tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    ended = run("eval.py", f"--workdir={tmp_path}", config=None)
    assert (ended.status, ended.err.count("\n")) == (1, 1)
    assert f"{tmp_path / 'config.json'} is not the config of a run" in ended.err


def test_a_name_that_is_no_text_is_one_line(run, tmp_path):
    (tmp_path / "config.json").write_text('{"detector": ["yolox"], "model": {}, "data": {}}')
    ended = run("eval.py", f"--workdir={tmp_path}", config=None)
    assert (ended.status, ended.err.count("\n")) == (1, 1)
    assert "config.detector wants str, found ('yolox',)" in ended.err


def test_a_config_that_makes_another_run_is_compared_with_the_saved_one(tmp_path):
    config, saved = read(CONFIG), tmp_path / "config.json"
    assert config_files.changes_of_run(config, saved) == []
    config_files.save(config, saved)
    assert config_files.changes_of_run(config, saved) == []
    # The same run.
    config.log_every, config.data.num_threads, config.data.root = 5, 9, "there"
    config.pictures_every = 7
    config.keep_programs, config.report = False, False
    config.optimizer.learning_rate = 0.5
    config.model.roi.sample.num_samples = 9
    config.data.max_boxes, config.num_steps = 9, 30
    assert config_files.changes_of_run(config, saved) == [
        "data.max_boxes was 8 and is 9",
        "model.roi.sample.num_samples was 16 and is 9",
        "num_steps was 24 and is 30",
        "optimizer.learning_rate was 0.02 and is 0.5",
    ]


@pytest.mark.parametrize(
    "settings, matters",
    [
        ({}, ()),
        ({"reload_best_at_milestones": True}, ("eval_images",)),
        ({"patience": 2}, ("eval_images",)),
        ({"on_not_finite": "go_back"}, ("checkpoint_every",)),
    ],
)
def test_where_the_best_stops_or_comes_back_more_settings_decide(tmp_path, settings, matters):
    config, saved = read(CONFIG), tmp_path / "config.json"
    config.update({"reload_best_at_milestones": False} | settings)
    config_files.save(config, saved)
    config.eval_images, config.checkpoint_every, config.log_every = 9, 9, 5
    changes = config_files.changes_of_run(config, saved)
    assert tuple(change.split()[0] for change in changes) == matters


def test_other_first_weights_are_another_run_whatever_they_are_called(tmp_path):
    config, saved = read(CONFIG), tmp_path / "config.json"
    config.init_from = "epoch_12.pth"
    config_files.save(config, saved)
    config.init_from = "epoch_24.pth"
    changes = config_files.changes_of_run(config, saved)
    assert changes == ["init_from was epoch_12.pth and is epoch_24.pth"]


@pytest.mark.parametrize("named", [(), ("square", "circle"), ("circle", "square")])
def test_the_classes_of_a_run_keep_their_order(tmp_path, named):
    config = read(CONFIG)
    assert config_files.with_classes_of_run(config, tmp_path) == config
    config_files.save(config, tmp_path / "config.json")
    config.data.classes = named
    found = config_files.with_classes_of_run(config, tmp_path)
    assert found.data.classes == ("circle", "square")
    config.data.classes = ("circle", "disc")
    with pytest.raises(UserError, match=r"has data.classes \['circle', 'square'\], found"):
        config_files.with_classes_of_run(config, tmp_path)


def test_a_run_goes_on_with_the_settings_it_used_last(tmp_path):
    def start(done, *changes):
        """Starts without --config where there is one; gives the files of settings."""
        named = [] if (tmp_path / "config.json").exists() else [f"--config={CONFIG}"]
        config = command_line.read(["", f"--workdir={tmp_path}", *named, *changes]).config
        config_files.keep(config, tmp_path, done)
        return config, sorted(path.name for path in tmp_path.iterdir())

    assert start(0, "--config.num_steps=30")[1] == ["config.json"]
    assert start(8)[1] == ["config.json"], "nothing is new"
    config, files = start(9, "--config.num_steps=60", "--config.data.root=moved")
    assert files == ["config.9.json", "config.json"]
    assert start(12) == (config, files)
    config, files = start(12, "--config.num_steps=30")  # What it began with, but for the root.
    assert files == ["config.12.json", "config.9.json", "config.json"]
    config, files = start(12)
    assert (config.num_steps, config.data.root) == (30, "moved")
    assert start(10)[1] == ["config.10.json", *files[1:]], "steps were lost, settings not"
    assert start(0)[1] == ["config.json"]


def test_two_configs_are_compared_by_a_flag(run, tmp_path):
    config = read(CONFIG)
    config.data.root = ""
    config_files.save(config, tmp_path / "config.json")
    against = f"--against={tmp_path / 'config.json'}"
    ended = run("train.py", against, "--config.model.rpn.sample.num_samples=8", root="")
    assert ended.status == 0
    assert ended.out.splitlines() == [
        "model.rpn.sample.num_samples: 32 -> 8",
        f"1 settings differ from {tmp_path / 'config.json'}",
    ]


def test_a_config_with_infinite_numbers_is_json(tmp_path):
    config = read(CONFIG, "--config.model.rpn.coder.max_ratio=inf")
    config_files.save(config, tmp_path / "config.json")

    def refuse(text):
        raise AssertionError(text)

    saved = json.loads((tmp_path / "config.json").read_text(), parse_constant=refuse)
    assert saved["model"]["rpn"]["coder"]["max_ratio"] == "inf"
