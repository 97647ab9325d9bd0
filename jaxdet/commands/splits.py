"""The splits of a config's data: opened, described, counted."""

import logging
from collections.abc import Sequence

from ml_collections import ConfigDict

from jaxdet.data import canvases, inventory, sources
from jaxdet.data.proposal_files import WithProposals
from jaxdet.data.sources import parts
from jaxdet.types import Source, UserError


def take_inventory(config: ConfigDict, source: Source) -> inventory.Inventory | None:
    """What a split has to learn; None where that shows when its images are read."""
    if not hasattr(source, "annotations"):
        return None
    return inventory.count(
        source.annotations(),
        len(source.class_names),
        dropped=getattr(source, "dropped", {}),
        **{key: config.data[key] for key in inventory.KEYS},
    )


def open_source(
    config: ConfigDict, split: str, classes: Sequence[str], *, annotated: bool = True
) -> Source:
    """Opens one split of the data, with its proposals where the config names their file.

    Args:
        config: of the run.
        split: its name.
        classes: see `sources.build`.
        annotated: whether annotations are needed.

    Raises:
        UserError: for mistakes in the data or its settings, and if it has no
            image or lacks its annotations.
    """
    data = config.data
    source = _open_split(data, split, tuple(classes))
    if len(source) == 0:
        raise UserError(f"there is no image in the split {split!r} of {data.root}")
    if annotated and not sources.is_annotated(source):
        raise UserError(
            f"the split {split!r} of {data.root} has images, but no annotations: it can be "
            "predicted only, by eval.py --results=FILE.json"
        )
    if data.more_canvases:
        canvases.check_source(source)
    if data.proposals:
        source = WithProposals(source, data.proposals.replace("{split}", split))
    return source


def class_names(config: ConfigDict, split: str, source: Source) -> tuple[str, ...]:
    """The classes of a split that was opened without them, label 0 first.

    Raises:
        UserError: if there is none: tables and VOC's xml name classes at objects alone.
    """
    if not source.class_names:
        raise UserError(
            f"{config.data.root} ({split}): there is no object on any of {len(source)} images, so "
            "that no class is known"
        )
    return tuple(source.class_names)


def describe_split(data: ConfigDict, split: str) -> str:
    """Its name, and what it is where that is a part that is held out of another."""
    named = _holding_out(data)
    if not named or split != data.eval_split:
        return split
    return f"{split} (held out of {data.train_split} by {named[0]})"


def _holding_out(data: ConfigDict) -> list[str]:
    """The settings that say what is held out."""
    names = ("val_fraction", "val_every", "val_list")
    return [f"data.{name}" for name in names if data[name]]


def _open_split(data: ConfigDict, split: str, classes: tuple[str, ...]) -> Source:
    """A split of the data, or what is learnt or held out of `data.train_split`."""
    rule = {"fraction": data.val_fraction, "every": data.val_every, "listed": data.val_list}
    named = _holding_out(data)
    if len(named) > 1:
        raise UserError(f"{' and '.join(named)} both say what is held out: leave one out")
    if named and data.eval_split == data.train_split:
        raise UserError(
            f"{named[0]} holds images of {data.train_split!r} out, which data.eval_split wants "
            f"another name for than {data.eval_split!r}, such as 'val'"
        )
    divided = bool(named) and split in (data.train_split, data.eval_split)
    source = sources.build(
        data.source,
        root=data.root,
        split=data.train_split if divided else split,
        classes=classes,
        **data.options,
    )
    if not divided:
        return source
    learnt, held_out = parts.divide(source, **rule)
    if split == data.train_split:
        return learnt
    logging.getLogger("jaxdet").info(
        "%s is %d of %d images of %s, held out by %s, and no split of the data's own",
        *(split, len(held_out), len(source), data.train_split, named[0]),
    )
    return held_out
