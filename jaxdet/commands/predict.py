"""Finds objects on images and videos.

    jaxdet predict MODEL FILE|FOLDER|PATTERN ... --out=FOLDER [--score=0.5] [--batch_size=N]

MODEL is a model.safetensors, or the folder of a run. A folder stands for all images
and videos in it. --out gets a picture NAME.jpg for each image and NAME.mp4 (without
sound) for each video, with what is found drawn in, and

    detections.json    all that is found, in the form of COCO's results
    images.json        the images and frames that it names, and the categories

NAME, a file's name without its ending, is the image's id; where it is a number, as
COCO's are, the id is that number. Frame 12 of a video is NAME/12, from 0 on. Files that
cannot be read are named and left out.
"""

import glob
import itertools
import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import cv2
from tqdm import tqdm

from jaxdet.commands import ending
from jaxdet.commands.prediction_files import Report, name_files
from jaxdet.data.decoding import PutRight, UnreadableImage
from jaxdet.loading import load
from jaxdet.prediction import Predictor, inputs
from jaxdet.prediction.found import Found, write_picture
from jaxdet.types import Example, UserError

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm")
MAX_BATCH = 8  # Images predicted at once, where nothing is said.
FRAMES_PER_SECOND = 25.0  # Of videos that do not say it.
MOST_FRAMES_PER_SECOND = 1000.0  # More than that is a mistake in the file.


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Runs the command."""
    argv = argv or sys.argv
    with ending.in_one_line(argv) as place:
        flags = _parser(argv[0]).parse_args(argv[1:])
        place.folder = Path(flags.out).expanduser()
        views = {"flip": flags.flip, "scales": _read_scales(flags.scales)}
        rest = place.folder, flags.score, flags.batch_size
        sys.exit(predict(flags.model, flags.images, *rest, **views))


def predict(
    model: str,
    named: Sequence[str],
    out: Path,
    score: float,
    batch_size: int | None,
    **views: Any,
) -> int:
    """Predicts all that is named, writes what is found, says so; gives the exit status."""
    paths = _list(named)
    for path in paths:
        if path.parent.resolve() == out.resolve():
            raise UserError(f"--out wants another folder than that of {path}, which could be lost")
    videos = [path for path in paths if _is_video(path)]
    images = [path for path in paths if not _is_video(path)]
    size = batch_size
    if size is None:
        size = MAX_BATCH if videos else min(len(images), MAX_BATCH)
    predictor, report = load(model, **views), Report()
    out.mkdir(parents=True, exist_ok=True)
    names = name_files(paths)

    try:
        examples = _read_images(images, report)
        for example, found in predictor.stream(examples, score=score, batch_size=size):
            name = names[example.id]
            report.add(name, example.id, found)
            _draw(out / f"{name}.jpg", found)
        for path in videos:
            film = out / f"{names[path]}.mp4"
            _film(predictor, path, film, report, score=score, batch_size=size)
    finally:
        # What was found before a full disk or an interrupt is not lost with it.
        if report.images:
            report.write(out, predictor)
    if len(report.unreadable) == len(paths):
        raise UserError(f"none of {len(paths)} files could be read, the first: {paths[0]}")
    print(report.summary(score, out))
    return 0


def _draw(path: Path, found: Found) -> None:
    """Writes a picture; where that cannot be, its detections stay."""
    try:
        write_picture(path, found.draw())
    except UserError as error:
        logging.getLogger("jaxdet").warning("%s; it is not drawn", error)


def _list(named: Iterable[str]) -> list[Path]:
    """The images and videos that are named, each once."""
    found, suffixes = [], (*inputs.SUFFIXES, *VIDEO_SUFFIXES)
    for text in named:
        path = Path(text).expanduser()
        if path.exists() or not glob.has_magic(text):
            found += inputs.list_files(path, suffixes)
            continue
        matches = map(Path, sorted(glob.glob(str(path), recursive=True)))
        matches = [m for m in matches if not m.is_dir() or m.suffix.lower() in suffixes]
        if not matches:
            raise UserError(f"no file matches {text!r}")
        found += matches
    return list(dict.fromkeys(found))


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES


def _read_images(paths: Sequence[Path], report: Report) -> Iterator[Example]:
    put_right = PutRight()
    for path in _bar(paths, "images", len(paths)):
        try:
            yield inputs.decode(path, put_right)
        except (UnreadableImage, OSError) as error:
            report.leave_out(path, error)


def _film(predictor: Predictor, path: Path, out: Path, report: Report, **keywords: Any) -> None:
    """Draws what is found into each frame of a video."""
    if inputs.is_endless(path):
        report.leave_out(path, f"{path}: not a file, but a pipe or a device")
        return
    capture = cv2.VideoCapture(str(path))
    writer, count = None, int(max(capture.get(cv2.CAP_PROP_FRAME_COUNT), 0))
    rate = capture.get(cv2.CAP_PROP_FPS)
    if not 0 < rate <= MOST_FRAMES_PER_SECOND:  # It is not known, or made up.
        rate = FRAMES_PER_SECOND
    frames = _read_frames(capture, path.name, count)
    done = 0
    try:
        for example, found in predictor.stream(frames, **keywords):
            picture = found.draw()
            if writer is None:
                size = picture.shape[1], picture.shape[0]
                writer = cv2.VideoWriter(str(out), cv2.VideoWriter.fourcc(*"mp4v"), rate, size)
                if not writer.isOpened():
                    raise UserError(f"{out}: OpenCV cannot write this video")
            writer.write(cv2.cvtColor(cv2.resize(picture, size), cv2.COLOR_RGB2BGR))
            report.add(f"{out.stem}/{example.id}", path, found, frame=example.id)
            done += 1
    finally:
        capture.release()
        if writer is not None:
            writer.release()
    if not done:
        report.leave_out(path, f"{path}: not a video, or a damaged one")
    elif done < count:
        log = logging.getLogger("jaxdet")
        log.warning("%s: %d of %d frames could be read", path, done, count)


def _read_frames(capture: Any, name: str, count: int) -> Iterator[Example]:
    for number in _bar(itertools.count(), name, count or None):
        there, frame = capture.read()
        if not there:
            return
        yield inputs.to_example(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), number)


def _read_scales(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",") if part]
    except ValueError:
        raise UserError(f"--scales wants numbers such as 1,1.5; found {text!r}") from None


def _bar(items: Iterable, name: str, total: int | None) -> Iterable:
    """A bar on a terminal, nothing in a log file."""
    return tqdm(items, desc=name, total=total, disable=None, dynamic_ncols=True, leave=False)


def _parser(program: str) -> ending.Parser:
    parser = ending.Parser(program, __doc__)
    add = parser.add_argument
    add("model", metavar="MODEL", help="a model.safetensors, or the folder of a run")
    add(
        "images",
        metavar="IMAGE",
        nargs="+",
        help="image, video, folder, or pattern such as '*.jpg'",
    )
    add("--out", metavar="FOLDER", required=True, help="for pictures, videos and JSON")
    add("--score", type=float, default=0.5, metavar="S", help="lowest score, 0 to 1; 0.5")
    add("--batch_size", type=int, metavar="N", help=f"images at once; {MAX_BATCH}, or all if fewer")
    add("--flip", action="store_true", help="see each image mirrored as well; twice the time")
    add("--scales", default="", metavar="S,S", help="see it at these scales, such as 1,1.5")
    add("--debug", action="store_true", help="show where an error comes from")
    return parser
