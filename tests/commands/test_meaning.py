"""What labels mean stays what it was when they were learnt; data without objects is said."""

from pathlib import Path

import pytest

from jaxdet.commands import config_files, evaluate, opening, splits
from jaxdet.types import UserError

BUGS = Path(__file__).parents[1] / "data" / "bugs"


@pytest.fixture
def voc(configure):
    """The config of a run on a folder of the two that differ in the name of a class."""

    def voc(name, *arguments):
        root = BUGS / "voc-renamed-class" / name
        source = ("--config.data.source=voc", f"--config.data.root={root}")
        named = ("--config.data.classes=()", "--config.data.eval_split=val")
        return configure(*source, *named, *arguments)

    return voc


def test_classes_are_kept_as_they_were_found(voc, tmp_path):
    run = opening.open_run(voc("first"))
    assert run.config.data.classes == run.class_names == ("box", "disc")
    config_files.keep(run.config, tmp_path, 0)
    there = config_files.with_classes_of_run(voc("second"), tmp_path)
    assert there.data.classes == ("box", "disc")
    with pytest.raises(UserError, match=r"p0.xml: unknown class 'thing'; data.classes has 'box'"):
        splits.open_source(there, "val", there.data.classes)


def test_an_evaluation_on_other_classes_is_refused(voc, tmp_path, capsys):
    config_files.keep(opening.open_run(voc("first")).config, tmp_path, 0)
    (tmp_path / "checkpoints" / "4").mkdir(parents=True)
    with pytest.raises(SystemExit):
        evaluate.main(["eval.py", f"--workdir={tmp_path}", "--config.data.classes=('box','thing')"])
    assert "has data.classes ['box', 'disc'], found ['box', 'thing']" in capsys.readouterr().err


def test_a_training_on_crowds_alone_ends_before_it_begins(configure):
    data = ("--config.data.source=coco", f"--config.data.root={BUGS / 'coco-all-crowd'}")
    names = ("--config.data.classes=()", "--config.data.eval_split=val")
    with pytest.raises(
        UserError, match="of 12 objects 12 crowd; iscrowd or ignore is 1 everywhere"
    ):
        opening.open_training(configure(*data, *names))


def test_a_training_on_objects_that_are_all_too_small_ends_before_it_begins(configure):
    data = ("--config.data.source=coco", f"--config.data.root={BUGS / 'coco-area-null'}")
    names = ("--config.data.classes=()", "--config.data.eval_split=val")
    with pytest.raises(UserError, match="of 12 objects 12 up to data.min_side"):
        opening.open_training(configure(*data, *names, "--config.data.min_side=40"))


def test_what_there_is_to_learn_is_counted(configure):
    data = ("--config.data.source=coco", f"--config.data.root={BUGS / 'coco-area-null'}")
    names = ("--config.data.classes=()", "--config.data.eval_split=val")
    run = opening.open_training(configure(*data, *names))
    assert run.to_learn.objects.tolist() == [8, 4]
    assert (run.to_learn.images, run.to_learn.empty, run.to_learn.left_out.sum()) == (4, 0, 0)
