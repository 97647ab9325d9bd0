"""The model file of a run."""

from pathlib import Path
from typing import Any

from jaxdet import model_file
from jaxdet.commands import command_line
from jaxdet.commands.opening import Run, open_run
from jaxdet.model_file import Contents
from jaxdet.training.saved import SavedCheckpoints
from jaxdet.types import Detector, Source


def write(
    run: Run, source: Source, checkpoints: SavedCheckpoints, workdir: Path, *, active: bool
) -> None:
    """Writes the best checkpoint: the averages, where they are kept.

    Args:
        run: as opened.
        source: of its data; may know the numbers of the classes there.
        checkpoints: of the run; the best one is read.
        workdir: of the run.
        active: False on all processes but the first, which only read with it.

    Raises:
        UserError: if the checkpoint cannot be read.
    """
    contents = _contents(run, checkpoints)
    numbers = category_ids(source, run.source)
    if active:
        model_file.write(workdir / model_file.NAME, contents._replace(category_ids=numbers))


def category_ids(*sources: Any) -> tuple[int, ...] | None:
    """The numbers of the classes in the data's own files, as the first source that knows them.

    A split may leave out categories that label nothing in it, and then knows none.
    """
    return next(filter(None, (getattr(each, "category_ids", None) for each in sources)), None)


def read(workdir: Path) -> tuple[Contents, Detector]:
    """What the model file of a run that has none yet would hold, and its detector.

    The numbers of the classes in the data's files are not known: no data is
    read, but where the config lacks the class names.

    Raises:
        UserError: if there is no config or checkpoint, or they do not fit.
    """
    config = command_line.read(["", f"--workdir={workdir}"]).config
    run = open_run(config)
    checkpoints = SavedCheckpoints(workdir / "checkpoints")
    try:
        return _contents(run, checkpoints), run.detector
    finally:
        checkpoints.close()


def _contents(run: Run, checkpoints: SavedCheckpoints) -> Contents:
    config = run.config
    return Contents(
        detector=config.detector,
        settings=config.model.to_dict(),
        class_names=run.class_names,
        canvas=config.data.canvas,
        more_canvases=config.data.more_canvases,
        resize=config.data.resize,
        resize_rule=config.data.resize_rule,
        variables=checkpoints.restore_variables("best", like=run.variables),
        max_proposals=config.data.max_proposals,
    )
