"""`jaxdet.load`: from a model file, or a run, to a detector that takes photographs."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import jax

from jaxdet import model_file
from jaxdet.detectors import views
from jaxdet.types import Detector, UserError

if TYPE_CHECKING:
    import jaxdet.prediction


def load(
    path: str | os.PathLike,
    *,
    flip: bool = False,
    scales: Sequence[float] = (),
    cache: bool | str | os.PathLike = True,
) -> "jaxdet.prediction.Predictor":
    """Loads a trained detector, which is called with images.

        model = jaxdet.load("runs/quickstart")
        found = model("photo.jpg", score=0.5)

    Args:
        path: a model file, or the folder of a run, which stands for its
            model.safetensors. Of a run that has none yet, the best checkpoint is taken.
        flip: whether each image is also seen mirrored, which takes twice as long;
            what both views find is joined by the detector's own suppression.
        scales: of the canvas, at each of which images are seen likewise; () for 1.
        cache: whether compiled programs are kept on disk for the next process,
            in ~/.cache/jaxdet ($XDG_CACHE_HOME/jaxdet), or the folder to keep
            them in. That is JAX's compilation cache: it is for the whole process,
            and stays as it is where it is set up (`jax_compilation_cache_dir`).

    Raises:
        UserError: if there is nothing to load, it does not fit, or what is
            needed for it is not installed.
    """
    try:
        from jaxdet.prediction import Predictor
    except ImportError as error:
        raise UserError(
            f'prediction needs OpenCV ({error}): pip install "jaxdet[predict]"'
        ) from error
    contents, detector = read(path)
    keep_programs(cache)
    return Predictor(contents, views.with_views(detector, flip=flip, scales=scales))


def read(path: str | os.PathLike) -> tuple[model_file.Contents, Detector]:
    """What a model file has, or a run, and the detector that it describes.

    Raises:
        UserError: as `load`.
    """
    path = Path(path).expanduser()
    if not path.is_dir():
        return model_file.read(path)
    if (path / model_file.NAME).is_file():
        return model_file.read(path / model_file.NAME)
    if not (path / "checkpoints").is_dir():
        raise UserError(f"{path}: this folder has neither {model_file.NAME} nor checkpoints")
    try:
        from jaxdet.commands import run_model
    except ImportError as error:
        raise UserError(
            f"{path} has no {model_file.NAME}, and to read its checkpoints needs {error.name}: "
            'pip install "jaxdet[train]"'
        ) from error
    return run_model.read(path)


def keep_programs(cache: bool | str | os.PathLike = True) -> None:
    """Keeps compiled programs on disk for the next process; see `cache` of `load`."""
    if cache is False or jax.config.jax_compilation_cache_dir is not None:
        return
    if cache is True:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "jaxdet")
    jax.config.update("jax_compilation_cache_dir", str(Path(cache).expanduser()))
