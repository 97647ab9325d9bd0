"""What a config may say: every key once."""

import difflib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

import flax.linen as nn

from jaxdet import detectors
from jaxdet.commands.keys import REQUIRED, Key, check, length, meanings_in, taken
from jaxdet.commands.renamed import RENAMED
from jaxdet.data import mosaic, pipeline, sources, transforms
from jaxdet.detectors import nested
from jaxdet.evaluation import EVALUATIONS
from jaxdet.training.optimizer import build_optimizer
from jaxdet.types import UserError

MODULE_NAME = "which module it is: a name of `jaxdet.models.MODULES`, or `package.module:Class`"


RUN = {
    "seed": Key(0, int, "of all draws", low=0),
    "detector": Key(REQUIRED, str, f"the method: {', '.join(detectors.DETECTORS)}"),
    "init_from": Key(
        "",
        str,
        "pretrained weights: a file of any system that docs/weights.md names, a model file, or the "
        "folder of a run; empty for none",
        is_path=True,
    ),
    "keep_programs": Key(
        True,
        bool,
        "whether compiled programs are kept for the next start, in ~/.cache/jaxdet "
        "($XDG_CACHE_HOME/jaxdet), or where JAX_COMPILATION_CACHE_DIR says",
    ),
    "heartbeat_seconds": Key(
        100,
        int,
        "a process of a run on several that gives no sign of life for so long is taken for dead, "
        "and the others end",
        low=5,
    ),
    "log_batches": Key(
        False,
        bool,
        "whether each process writes which images its batches have to batches.<process>.jsonl",
    ),
    "batch_size": Key(REQUIRED, int, "images of a step, over all devices", low=1),
    "accumulate": Key(
        1,
        int,
        "parts that each device takes its images of a step in, one after the other: the memory of "
        "one part, the loss of the whole batch; batch norm sees a part",
        low=1,
    ),
    "num_steps": length(REQUIRED, "length of the run", low=1),
    "final_steps": length(
        0,
        "in so many last steps there are no mosaics (with what moves and mixes them), a detector "
        "that knows an L1 loss of raw boxes has it, and `warmup_cosine` stays at its lowest rate",
    ),
    "eval_every": length("1 epoch", "steps between evaluations; 0 evaluates at the end only"),
    "final_eval_every": length(0, "the same in the final steps; 0 for `eval_every`"),
    "eval_images": Key(0, int, "at most so many images are evaluated; 0 for all", low=0),
    "eval_batch_size": Key(
        0, int, "images predicted at once, over all devices; 0 for `batch_size`", low=0
    ),
    "eval_flip": Key(
        False, bool, "whether evaluations see each image mirrored as well, and join what is found"
    ),
    "eval_scales": Key(
        (),
        tuple[float, ...],
        "they see each image at these scales of the canvas, and join what is found; () for (1.0,)",
    ),
    "checkpoint_every": length(1000, "steps between saves; 0 saves after evaluations only"),
    "reload_best_at_milestones": Key(
        False, bool, "whether the best parameters so far come back at each of optimizer.milestones"
    ),
    "keep_latest": Key(1, int, "so many of the latest checkpoints are kept", low=1),
    "keep_best": Key(1, int, "and so many of the best", low=1),
    "patience": Key(
        0,
        int,
        "the run is finished after so many evaluations in a row that are no better than the best "
        "before; 0 for never",
        low=0,
    ),
    "min_delta": Key(
        0.0,
        float,
        "for `patience` an evaluation is better only if it is by more than this, in the metric "
        "that the best checkpoint is chosen by",
        low=0,
    ),
    "max_hours": Key(
        0.0,
        float,
        "so many hours after its process began the run saves and ends, with status 0; the same "
        "command goes on; 0 for no limit",
        low=0,
    ),
    "on_not_finite": Key(
        "stop",
        Literal["stop", "skip", "go_back"],
        "what becomes of a step whose loss, gradient or parameters are not finite: the run stops, "
        "or skips its update, or goes back to the last checkpoint with half the learning rate",
    ),
    "spike_pictures": Key(
        0.0,
        float,
        "where a loss is more than so many times the median of the 100 before, its batch is drawn "
        "into pictures/, at most one a line of the log; 0 for never",
        low=0,
    ),
    "profile_steps": Key(
        (),
        tuple[int, int] | tuple[()],
        "(first, last) step, from 1 on, of which jax.profiler writes a trace into profile/; () "
        "for none",
    ),
    "deterministic": Key(
        False, bool, "whether XLA is asked for the same bits in each run on GPUs, which is slower"
    ),
    "log_every": length(50, "steps between lines of the log", low=1),
    "num_pictures": Key(8, int, "pictures drawn at a time", low=0),
    "report": Key(
        True, bool, "whether a finished training writes report.html of its best checkpoint"
    ),
    "picture_score": Key(0.5, float, "lowest score that is drawn"),
    "pictures_every": length(0, "steps between pictures, besides those after evaluations; 0: none"),
    "ema_decay": Key(
        0.0,
        float,
        "averages of parameters and statistics are kept, and evaluated instead of them: what an "
        "average keeps in a step, in the long run; 0 for none",
        low=0,
        below=1,
    ),
    "ema_ramp": Key(2000, int, "steps in which it grows to about 63 % of `ema_decay`", low=1),
    "multiscale_heights": Key(
        (),
        tuple[int, ...],
        "heights of the canvas, multiples of 32, one of which is drawn; batches are resized to it "
        "on the device",
    ),
    "multiscale_every": Key(10, int, "steps for which a drawn height stays", low=1),
}
DATA = {
    "source": Key(
        REQUIRED,
        str,
        f"what the data is: {', '.join(sources.SOURCES)}; or `module:function` or "
        "`file.py:function` of your own",
    ),
    "root": Key(REQUIRED, str, "its folder", is_path=True),
    "train_split": Key("train", str, 'what is learnt; "a+b" joins two lists of VOC'),
    "eval_split": Key("val", str, "what is evaluated"),
    "val_fraction": Key(
        0.0,
        float,
        "so large a part of `train_split` is held out, by a hash of the images' ids, and is what "
        "`eval_split` means then; 0 for none",
        low=0,
        below=1,
    ),
    "val_every": Key(
        0, int, "the first of so many images in the order of the data is; 0 for none", low=0
    ),
    "val_list": Key("", str, "the images are whose ids this text file lists", is_path=True),
    "classes": Key(
        (), tuple[str, ...], "class names in the order of their labels; empty takes the data's own"
    ),
    "proposals": Key(
        "", str, "file of given proposals; {split} stands for the name of the split", is_path=True
    ),
    "canvas": Key(REQUIRED, tuple[int, int], "(height, width) that images are padded to, pixels"),
    **taken(pipeline.train_batches, "more_canvases"),
    "resize": Key(
        (),
        tuple[int | tuple[int, ...], int] | tuple[()],
        "(short, long) sides that images are resized to within the canvas; one of several short "
        "ones, ((480, 512), 800), is drawn; () for the sides of the canvas",
    ),
    **taken(pipeline.train_batches, "resize_rule"),
    **taken(pipeline.train_batches, "max_boxes", "max_proposals", "keep_empty", "use_difficult"),
    **taken(pipeline.train_batches, "num_threads", "exif"),
    **taken(transforms.Augmentation, *transforms.Augmentation._fields),
    **taken(mosaic.Composition, *mosaic.Composition._fields),
}
OPTIMIZER = {
    **taken(
        build_optimizer,
        *("name", "schedule", "final_ratio", "warmup_ratio", "nesterov"),
        *("decay_biases", "decay_norms", "frozen"),
        learning_rate=0,
        base_batch_size=1,
        milestones={"type": tuple[int | str, ...], "is_length": True},
        decay_factor=0,
        warmup_steps={"type": int | str, "low": 0, "is_length": True},
        momentum=0,
        weight_decay=0,
        bias_rate=0,
        clip_norm=0,
    ),
}


class UnknownKey(UserError):
    """A path that does not exist; `unknown_key` says what does."""


def describe(config: Mapping[str, Any]) -> dict[str, Any]:
    """All keys of a config, as nested dictionaries of `Key`.

    Args:
        config: nested settings. What it names (detector, modules, data source,
            evaluation) decides on the keys.

    Raises:
        UserError: for a name that is unknown.
    """
    data, model = _section(config, "data"), _section(config, "model")
    for path, section, key in (("detector", config, RUN), ("data.source", data, DATA)):
        name = path.rpartition(".")[2]
        if not section.get(name):
            raise UserError(f"config.{path} is missing: {key[name].meaning}")
    evaluation, source = _section(config, "evaluation").get("name", "coco"), data["source"]
    if evaluation not in EVALUATIONS:
        raise UserError(f"unknown evaluation.name {evaluation!r}{_hint(evaluation, EVALUATIONS)}")
    builder = detectors.find_builder(config["detector"])
    with_names = {key: value for key, value in model.items() if isinstance(value, Mapping)}
    return {
        **RUN,
        "data": {**DATA, "options": options(source)},
        "evaluation": {
            "name": Key("coco", str, f"what is measured: {', '.join(EVALUATIONS)}"),
            **_keyword_only(EVALUATIONS[evaluation].evaluate),
        },
        "model": _from_leaves(nested.describe(builder, with_names)),
        "optimizer": OPTIMIZER,
    }


def options(source: str) -> dict[str, Key]:
    """The settings that only this data source takes.

    Raises:
        UserError: if it is unknown.
    """
    owner, names = sources.options(source)
    return taken(owner, *names) if source in sources.SOURCES else _own_options(owner, names)


def _own_options(owner: Callable, names: Iterable[str]) -> dict[str, Key]:
    """The settings of a function of the user's, which may lack types and meanings."""
    parameters, meanings = inspect.signature(owner).parameters, meanings_in(owner)
    return {
        name: Key(
            parameters[name].default, _type_of(parameters[name], owner), meanings.get(name, "")
        )
        for name in names
    }


def _type_of(parameter: inspect.Parameter, owner: Callable) -> Any:
    """A type that is written as text may name what only type checkers import: it is any then."""
    found = parameter.annotation
    if isinstance(found, str):
        try:
            found = eval(found, inspect.unwrap(owner).__globals__)
        except Exception:
            return Any
    return Any if found is inspect.Parameter.empty else found


def leaves(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """The items of nested dictionaries, with their paths: ("roi.sample.num_samples", 512)."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


def unknown_key(path: str, tree: Mapping[str, Any], detector: str) -> UserError:
    """The error for a path that does not exist, with the nearest that does."""
    said = f"there is no setting config.{path}"
    section, _, name = path.rpartition(".")
    places = RENAMED.get(detector, {}).get(name, ())
    if section == "model" and places:
        return UserError(f"{said}: it is config.model.{places[0]} now")
    beside = _at(tree, section)
    paths = [known for known, _ in leaves(tree)]
    if beside is None:
        # The section is wrong, its name or its place.
        near = [known for known in paths if known.rpartition(".")[2] == name]
        near = difflib.get_close_matches(path, near or paths, n=1, cutoff=0.3 if near else 0.6)
    else:
        near = difflib.get_close_matches(name, beside, n=1)
        near = [".".join(filter(None, (section, each))) for each in near]
        near = near or [known for known in paths if known.rpartition(".")[2] == name][:1]
    if near:
        return UserError(f"{said}; did you mean config.{near[0]}?")
    place = f"config.{section}" if section else "config"
    return UserError(f"{said}; {place} has {', '.join(beside or ())}")


def complete(config: Mapping[str, Any], tree: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """A config with all keys, each of its type.

    Args:
        config: nested settings.
        tree: its keys, from `describe`.
        path: of both in the whole config, with a dot at its end.

    Raises:
        UnknownKey: for the first key that is unknown.
        UserError: for a key that is missing, and a value of another type or out
            of its range.
    """
    for name in config:
        if name not in tree:
            raise UnknownKey(f"{path}{name}")
    found = {}
    for name, key in tree.items():
        place = f"{path}{name}"
        if isinstance(key, Mapping):
            part = config.get(name, {})
            if not isinstance(part, Mapping):
                raise UserError(f"config.{place} wants settings of its own, found {part!r}")
            found[name] = complete(part, key, f"{place}.")
        elif name in config:
            found[name] = check(config[name], key, place)
        elif key.default is REQUIRED:
            raise UserError(f"config.{place} is missing: {key.meaning}")
        else:
            found[name] = key.default
    return found


def _keyword_only(function: Callable) -> dict[str, Key]:
    parameters = inspect.signature(function).parameters.values()
    return taken(function, *(p.name for p in parameters if p.kind is p.KEYWORD_ONLY))


def _from_leaves(tree: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for name, leaf in tree.items():
        if isinstance(leaf, Mapping):
            found[name] = _from_leaves(leaf)
        elif leaf.owner is nn.Module:
            found[name] = Key(leaf.default, leaf.type, MODULE_NAME)
        else:
            found[name] = Key(leaf.default, leaf.type, meanings_in(leaf.owner).get(name, ""))
    return found


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = config.get(name, {})
    if not isinstance(section, Mapping):
        raise UserError(f"config.{name} wants settings of its own, found {section!r}")
    return section


def _at(tree: Mapping[str, Any], path: str) -> Mapping[str, Any] | None:
    """The section at a path; None where there is none."""
    for name in filter(None, path.split(".")):
        tree = tree.get(name) if isinstance(tree, Mapping) else None
    return tree if isinstance(tree, Mapping) else None


def _hint(name: Any, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(str(name), known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"
