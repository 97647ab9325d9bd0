"""`jaxdet predict`, and how `jaxdet` finds its commands."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from prediction import tiny_model

from jaxdet import __main__, detectors, model_file
from jaxdet.commands import predict
from jaxdet.prediction import Predictor

PAGE = (Path(__file__).parents[2] / "docs" / "predict.md").read_text()
NUM_FRAMES = 5


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def model():
    contents = tiny_model.draw_contents()
    return Predictor(
        contents, detectors.build(contents.detector, num_classes=2, **contents.settings)
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A place with a model file, photographs, a video and things that are neither."""
    folder = tmp_path_factory.mktemp("place")
    for name in ("runs/quickstart", "photos", "more"):
        (folder / name).mkdir(parents=True)
    model_file.write(folder / "runs/quickstart" / model_file.NAME, tiny_model.draw_contents())
    tiny_model.write_photographs(folder / "photos")
    tiny_model.write_photographs(folder / "more", [(50, 60)])  # Again a photo0.png.
    tiny_model.write_photographs(folder, [(90, 60)])[0].rename(folder / "photo.jpg")
    (folder / "photos" / "000000397133.png").write_bytes((folder / "photo.jpg").read_bytes())
    (folder / "photos" / "notes.txt").write_text("no image")
    _write_video(folder / "clip.avi")
    return folder


def _write_video(path, frames=NUM_FRAMES, rate=10):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), rate, (80, 60))
    for i in range(frames):
        writer.write(tiny_model.draw_photograph((60, 80), i))
    writer.release()


@pytest.fixture
def run(model, folder, monkeypatch, capfd, tmp_path):
    """Runs `jaxdet predict` with the shared model; gives what it leaves."""

    def run(*arguments, out=tmp_path / "out"):
        monkeypatch.chdir(folder)
        monkeypatch.setattr(predict, "load", lambda path, **views: model)
        with pytest.raises(SystemExit) as ended:
            __main__.main(["jaxdet", "predict", "model", *map(str, arguments), f"--out={out}"])
        printed, errors = capfd.readouterr()
        files = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
        parts = {
            name: json.loads((out / f"{name}.json").read_text())
            for name in ("detections", "images")
            if f"{name}.json" in files
        }
        return SimpleNamespace(
            status=ended.value.code, out=printed, err=errors, files=files, folder=out, **parts
        )

    return run


def test_images_leave_pictures_and_what_is_found(run, model, folder):
    done = run("photos", "more/*.png", "--score=0")

    assert (done.status, done.err) == (0, "")
    names = [*(f"photo{i}" for i in range(5)), "000000397133", "photo0-2"]
    pictures = sorted(f"{name}.jpg" for name in names)
    assert done.files == sorted([*pictures, "detections.json", "images.json"])
    images = {image["file_name"]: image for image in done.images["images"]}
    assert images["photos/photo3.png"] == {
        "id": "photo3", "file_name": "photos/photo3.png", "width": 222, "height": 333
    }  # fmt: skip
    assert images["photos/000000397133.png"]["id"] == "000000397133"
    assert images["more/photo0.png"]["id"] == "photo0-2"
    assert done.images["categories"] == [
        {"id": 7, "name": "circle"}, {"id": 90, "name": "square"}
    ]  # fmt: skip
    assert f" objects of score 0 or more on 7 images, in {done.folder}" in done.out

    found = model("photos/photo3.png", batch_size=7)[0]
    mine = [item for item in done.detections if item["image_id"] == "photo3"]
    assert [item.keys() for item in mine] == [item.keys() for item in found.to_coco("photo3")]
    boxes = np.array([item["bbox"] for item in mine])
    np.testing.assert_allclose(boxes[:, :2], found.boxes[:, :2], atol=0.2)
    assert cv2.imread(str(done.folder / "photo3.jpg")).shape == (480, 320, 3)


def test_ids_of_images_are_all_numbers_or_all_texts(run, folder):
    """NumPy, with which others read them, has no order for both."""
    for name in ("7.png", "008.png"):
        shutil.copy(folder / "photos" / "photo0.png", folder / name)
    done = run("7.png", "008.png", "--score=0")
    assert {item["image_id"] for item in done.detections} == {7, 8}
    done = run("7.png", "photos/photo1.png", "--score=0")
    ids = {image["id"] for image in done.images["images"]}
    assert {item["image_id"] for item in done.detections} == ids == {"7", "photo1"}


def test_only_what_has_the_score_is_written(run, model, folder):
    scores = model(folder / "photo.jpg")[0].scores
    bound = float(scores[:5].mean())
    done = run("photo.jpg", f"--score={bound}")

    assert len(done.detections) == (scores >= bound).sum() > 0
    assert all(item["score"] >= bound for item in done.detections)


def test_views_are_asked_for_when_the_model_is_loaded(run, model, monkeypatch, capfd, tmp_path):
    asked = []
    run("photo.jpg")  # Goes to the folder.
    monkeypatch.setattr(predict, "load", lambda path, **views: asked.append(views) or model)
    for flags in ([], ["--flip", "--scales=1,1.5"], ["--scales=big"]):
        with pytest.raises(SystemExit):
            predict.main(["jaxdet", "model", "photo.jpg", f"--out={tmp_path}", *flags])
    assert asked == [{"flip": False, "scales": []}, {"flip": True, "scales": [1.0, 1.5]}]
    assert "error: --scales wants numbers such as 1,1.5; found 'big'" in capfd.readouterr().err


def test_files_that_cannot_be_read_are_named_and_the_rest_goes_on(run, folder):
    broken = folder / "broken.png"
    broken.write_bytes((folder / "photo.jpg").read_bytes()[:70])
    (folder / "broken.mp4").write_bytes(b"no video" * 99)
    done = run("broken.png", "photo.jpg", "broken.mp4")

    assert done.status == 0 and len(done.images["images"]) == 1
    assert "left out: broken.png: not an image, or a damaged one" in done.err
    assert "left out: broken.mp4: not a video, or a damaged one" in done.err
    assert "; 2 could not be read" in done.out

    done = run("broken.png", "broken.mp4")
    assert done.status == 1 and "error: none of 2 files could be read" in done.err


def test_pipes_are_named_and_not_waited_for(run, folder, tmp_path):
    shutil.copy(folder / "photos/photo0.png", tmp_path / "photo.png")
    for name in ("pipe.png", "pipe.mp4"):
        os.mkfifo(tmp_path / name)
    for named in ([tmp_path], sorted(tmp_path.glob("p*"))):
        done = run(*named)
        assert done.status == 0 and len(done.images["images"]) == 1
        for name in ("pipe.png", "pipe.mp4"):
            assert f"left out: {tmp_path}/{name}: not a file" in done.err


@pytest.mark.parametrize("named", ["", "*", "*.png"])
def test_links_to_nowhere_and_folders_named_as_pictures_are_named(run, folder, tmp_path, named):
    mixed = tmp_path / "mixed"
    (mixed / "folder.png").mkdir(parents=True)
    (mixed / "more").mkdir()
    (mixed / "broken.png").symlink_to(tmp_path / "nowhere.png")
    shutil.copy(folder / "photos/photo0.png", mixed)
    done = run(mixed / named)

    assert done.status == 0 and len(done.images["images"]) == 1
    assert "; 2 could not be read" in done.out and done.err.count("left out: ") == 2
    assert f"No such file or directory: '{mixed}/broken.png'" in done.err
    assert f"Is a directory: '{mixed}/folder.png'" in done.err
    error = run(mixed / "broken.png").err
    assert f"{mixed}/broken.png: there is no such image" in error
    assert f"did you mean {mixed}/broken.png?" not in error


def test_half_a_minute_stays_half_a_minute(run, tmp_path):
    _write_video(tmp_path / "long.avi", frames=60, rate=2)
    done = run(tmp_path / "long.avi", "--batch_size=2")  # Its program is there already.

    assert done.status == 0 and "on 60 frames" in done.out
    video = cv2.VideoCapture(str(done.folder / "long.mp4"))
    count, rate = (video.get(each) for each in (cv2.CAP_PROP_FRAME_COUNT, cv2.CAP_PROP_FPS))
    assert count / rate == 30


def test_a_video_is_drawn_frame_by_frame(run):
    done = run("clip.avi", "--score=0", "--batch_size=2")

    assert done.status == 0 and "clip.mp4" in done.files
    video = cv2.VideoCapture(str(done.folder / "clip.mp4"))
    frames = []
    while True:
        there, frame = video.read()
        if not there:
            break
        frames.append(frame)
    assert len(frames) == NUM_FRAMES and frames[0].shape == (360, 480, 3)
    assert video.get(cv2.CAP_PROP_FPS) == 10
    assert [image["id"] for image in done.images["images"]] == [f"clip/{i}" for i in range(5)]
    assert done.images["images"][3]["frame"] == 3
    assert {item["image_id"] for item in done.detections} == {f"clip/{i}" for i in range(5)}
    assert "on 5 frames" in done.out


@pytest.mark.parametrize(
    "arguments, line",
    [
        (["phot.jpg"], "error: phot.jpg: there is no such image; did you mean photo.jpg?"),
        (["*.tiff"], "error: no file matches '*.tiff'"),
        (["runs"], "error: runs: there is no image in this folder"),
        (["photo.jpg", "--scor=1"], "error: unknown flag --scor; did you mean --score?"),
        (["photo.jpg", "--score=high"], "error: argument --score: invalid float value: 'high'"),
        (["photo.jpg", "--score=2"], "error: score wants a number from 0 to 1, found 2.0"),
        (["photo.jpg", "--batch_size=-1"], "error: batch_size wants at least 1, found -1"),
    ],
)
def test_a_mistake_is_one_line(run, arguments, line):
    done = run(*arguments)

    assert done.status == 1 and done.out == ""
    assert line in done.err and done.err.count("\n") == 1


def test_pictures_never_take_the_place_of_the_photographs(run, folder):
    done = run("photo.jpg", out=folder)

    assert done.status == 1 and "--out wants another folder than that of photo.jpg" in done.err


def test_a_model_that_is_none_is_one_line(folder, monkeypatch, capfd, tmp_path):
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as ended:
        __main__.main(["jaxdet", "predict", "runs", "photo.jpg", f"--out={tmp_path / 'out'}"])

    assert ended.value.code == 1 and not (tmp_path / "out").exists()
    line = "error: runs: this folder has neither model.safetensors nor checkpoints\n"
    assert capfd.readouterr().err == line


@pytest.mark.parametrize("name", __main__.COMMANDS)
def test_each_command_lists_its_flags(name, capfd):
    with pytest.raises(SystemExit) as ended:
        __main__.main(["jaxdet", name, "--help"])

    own = {"predict": "--score S", "convert": "--names SYSTEM", "export": "--to {onnx,stablehlo}"}
    flag = {**own, "report": "--split NAME", "compare": "--out FILE.html"}.get(
        name, "--config FILE"
    )
    printed = capfd.readouterr().out
    assert ended.value.code == 0 and flag in printed and f"python -m jaxdet {name}" in printed


@pytest.mark.parametrize(
    "arguments, status, line",
    [
        ([], 0, "predict   finds objects on images and videos"),
        (["--help"], 0, "train     trains a detector, or resumes a run"),
        (["--version"], 0, "0."),
        (["pedict"], "error: there is no command 'pedict'; did you mean predict?", ""),
        (
            ["x"],
            f"error: there is no command 'x'; there are {', '.join(__main__.COMMANDS)}",
            "",
        ),
    ],
)
def test_jaxdet_lists_its_commands(arguments, status, line, capfd):
    with pytest.raises(SystemExit) as ended:
        __main__.main(["jaxdet", *arguments])

    assert ended.value.code == status and line in capfd.readouterr().out


def test_a_command_whose_libraries_are_missing_says_what_to_install():
    code = (
        "import sys; sys.modules.update(cv2=None, ml_collections=None)\n"
        "from jaxdet import __main__\n"
        "for name in __main__.COMMANDS:\n"
        "    try: __main__.main(['jaxdet', name])\n"
        "    except SystemExit as ended: print(ended)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.splitlines() == [
        'error: the command train needs ml_collections: pip install "jaxdet[train]"',
        'error: the command eval needs ml_collections: pip install "jaxdet[train]"',
        'error: the command predict needs cv2: pip install "jaxdet[predict]"',
        "1",  # convert needs neither: what it lacks are its arguments.
        'error: the command check needs ml_collections: pip install "jaxdet[train]"',
        'error: the command browse needs cv2: pip install "jaxdet[train]"',
        'error: the command summary needs ml_collections: pip install "jaxdet[train]"',
        'error: the command report needs ml_collections: pip install "jaxdet[train]"',
        'error: the command compare needs ml_collections: pip install "jaxdet[train]"',
        'error: the command export needs cv2: pip install "jaxdet[export]"',
    ]


def test_prediction_from_the_command_line_needs_no_training(folder, tmp_path):
    blocked = "faster_coco_eval grain ml_collections orbax tensorboardX tensorflow_datasets torch"
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({blocked.split()}))\n"
        "from jaxdet import __main__\n"
        f"__main__.main(['jaxdet', 'predict', 'runs/quickstart', 'photo.jpg', '--out={tmp_path}'])"
    )
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": os.getcwd()}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, env=environment
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "photo.jpg").is_file()


def test_the_commands_of_the_page_run(run, folder, tmp_path):
    commands = [shlex.split(line) for block in blocks("bash") for line in block.splitlines()]

    assert len(commands) == 2
    for i, (program, name, model, *arguments) in enumerate(commands):
        assert (program, name) == ("jaxdet", "predict") and (folder / model).exists()
        assert arguments.count("--out=found") == 1
        arguments.remove("--out=found")
        done = run(*arguments, out=tmp_path / str(i))
        assert done.status == 0 and "photo" in "".join(done.files)
    assert "clip.mp4" in done.files and "photo0-2.jpg" in done.files


def test_the_python_of_the_page_runs(folder, model, monkeypatch, capfd):
    monkeypatch.chdir(folder)
    names = {}
    for block in blocks("python"):
        block = block.replace('.load("runs/quickstart")', '.load("runs/quickstart", cache=False)')
        exec(compile(block, "predict.md", "exec"), names)

    assert "yolox ('circle', 'square') (64, 96)" in capfd.readouterr().out
    assert (folder / "drawn.jpg").is_file()
    assert len(names["items"]) >= 5 and names["picture"].ndim == 3
