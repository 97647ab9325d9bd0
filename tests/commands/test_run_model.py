"""The model file that a run leaves, and the run that has none yet."""

import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from commands.conftest import CONFIG
from data.drawn_data import write_coco

import jaxdet
from jaxdet import model_file
from jaxdet.commands import command_line, evaluate, opening, report, run_model, splits
from jaxdet.training.saved import SavedCheckpoints
from jaxdet.types import UserError


@pytest.fixture(scope="module")
def written(trained):
    return model_file.read(trained.workdir / model_file.NAME)[0]


@pytest.fixture(scope="module")
def bare(trained, place):
    """The run without its model file."""
    folder = shutil.copytree(trained.workdir, place.folder / "bare", dirs_exist_ok=True)
    (folder / model_file.NAME).unlink()
    return folder


def test_a_run_leaves_its_best_checkpoint_as_a_model_file(trained, written):
    assert f"best model:  {trained.workdir / model_file.NAME}" in trained.out
    checkpoints = SavedCheckpoints(trained.workdir / "checkpoints")
    best = checkpoints.restore_variables("best", like=written.variables)
    checkpoints.close()

    jax.tree.map(np.testing.assert_array_equal, written.variables, best)
    assert written.detector == "faster_rcnn" and written.settings["roi"]["head"]["hidden"] == 16
    assert written.class_names == ("circle", "square") and written.category_ids is None
    assert written.canvas == written.resize == (64, 64)


def test_a_run_without_a_model_file_is_loaded_from_its_checkpoint(bare, trained):
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3)).astype(np.uint8)
    (one,), (other,) = (jaxdet.load(d, cache=False)(pixels) for d in (bare, trained.workdir))

    assert len(one) > 0
    np.testing.assert_array_equal(one.boxes, other.boxes)
    np.testing.assert_array_equal(one.scores, other.scores)


def test_a_run_without_a_checkpoint_is_one_line(bare, tmp_path):
    shutil.copy(bare / "config.json", tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="no checkpoint in "):
        jaxdet.load(tmp_path, cache=False)


def test_a_finished_run_that_lacks_its_model_file_and_report_writes_them(
    bare, trained, run, tmp_path
):
    folder = shutil.copytree(bare, tmp_path / "run")
    (folder / report.NAME).unlink()
    assert run("train.py", f"--workdir={folder}", config=None).status == 0
    pages = [(place / report.NAME).read_text() for place in (folder, trained.workdir)]
    assert pages[0] == pages[1].replace(trained.workdir.name, folder.name)
    assert (folder / model_file.NAME).read_bytes() == (
        trained.workdir / model_file.NAME
    ).read_bytes()


@pytest.mark.parametrize("of_eval, of_train", [((3, 7), None), (None, (3, 7)), (None, None)])
def test_the_numbers_of_categories_are_those_of_either_split(of_eval, of_train):
    sources = [SimpleNamespace(category_ids=ids) for ids in (of_eval, of_train)]
    assert run_model.category_ids(*sources) == (of_eval or of_train)
    assert run_model.category_ids(object(), None) is None


def test_results_have_the_numbers_of_the_training_data_where_the_split_lacks_one(
    tmp_path, written, capsys
):
    image = {"id": 1, "file_name": "a.jpg", "height": 40, "width": 60}
    numbers = [{"id": 3, "name": "square"}, {"id": 7, "name": "circle"}]
    box = {"id": 1, "image_id": 1, "category_id": 3, "bbox": [0, 0, 9, 9]}
    content = {"images": [image], "annotations": [box], "categories": numbers}
    write_coco(tmp_path, content)
    root = write_coco(tmp_path, content | {"categories": numbers[:1]}, split="test")
    arguments = [f"--config={CONFIG}", "--config.data.source=coco", f"--config.data.root={root}"]
    config = command_line.read(["", *arguments]).config
    run = opening.Run(config, ("circle", "square"), SimpleNamespace(), {})
    source = splits.open_source(config, "test", run.class_names)
    assert source.category_ids is None
    assert evaluate._category_ids(run, source, tmp_path) == (7, 3)
    assert not capsys.readouterr().err

    config.data.train_split = "gone"
    assert evaluate._category_ids(run, source, tmp_path) is None
    said = capsys.readouterr().err
    assert "the numbers 1 to 2 in the results, not the data's own: no annotation file" in said
    model_file.write(tmp_path / model_file.NAME, written._replace(category_ids=(8, 9)))
    assert evaluate._category_ids(run, source, tmp_path) == (8, 9)
