"""Every key of a config that is no detector's, no evaluation's and no data source's own."""

from typing import Literal

from jaxdet import detectors
from jaxdet.commands.keys import REQUIRED, Key, length, taken
from jaxdet.data import mosaic, pipeline, sources, transforms
from jaxdet.training.optimizer import build_optimizer

RUN = {
    "seed": Key(0, int, "of all draws", low=0, below=2**63),
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
        decides="nothing",
    ),
    "heartbeat_seconds": Key(
        100,
        int,
        "a process of a run on several that gives no sign of life for so long is taken for dead, "
        "and the others end",
        low=5,
        decides="nothing",
    ),
    "log_batches": Key(
        False,
        bool,
        "whether each process writes which images its batches have to batches.<process>.jsonl",
        decides="nothing",
    ),
    "batch_size": Key(REQUIRED, int, "images of a step, over all devices", low=1, below=2**31),
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
    "eval_every": length(
        "1 epoch", "steps between evaluations; 0 evaluates at the end only", decides="best"
    ),
    "final_eval_every": length(
        0, "the same in the final steps; 0 for `eval_every`", decides="best"
    ),
    "eval_images": Key(
        0, int, "at most so many images are evaluated; 0 for all", low=0, decides="best"
    ),
    "eval_batch_size": Key(
        0,
        int,
        "images predicted at once, over all devices; 0 for `batch_size`",
        low=0,
        below=2**31,
        decides="nothing",
    ),
    "eval_flip": Key(
        False, bool, "whether evaluations see each image mirrored as well, and join what is found"
    ),
    "eval_scales": Key(
        (),
        tuple[float, ...],
        "they see each image at these scales of the canvas, and join what is found; () for (1.0,)",
    ),
    "checkpoint_every": length(
        1000, "steps between saves; 0 saves after evaluations only", decides="nothing"
    ),
    "reload_best_at_milestones": Key(
        False, bool, "whether the best parameters so far come back at each of optimizer.milestones"
    ),
    "keep_latest": Key(
        1, int, "so many of the latest checkpoints are kept", low=1, decides="nothing"
    ),
    "keep_best": Key(1, int, "and so many of the best", low=1, decides="best"),
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
        "for `patience` an evaluation counts as better only if it is by more than this better than "
        "the last that did, in the metric that the best checkpoint is chosen by",
        low=0,
    ),
    "max_hours": Key(
        0.0,
        float,
        "so many hours after its process began the run saves and ends, with status 0; the same "
        "command goes on; 0 for no limit",
        low=0,
        decides="nothing",
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
        decides="nothing",
    ),
    "profile_steps": Key(
        (),
        tuple[int, int] | tuple[()],
        "(first, last) step, from 1 on, of which jax.profiler writes a trace into profile/; () "
        "for none",
        decides="nothing",
    ),
    "deterministic": Key(
        False, bool, "whether XLA is asked for the same bits in each run on GPUs, which is slower"
    ),
    "log_every": length(50, "steps between lines of the log", low=1, decides="nothing"),
    "num_pictures": Key(8, int, "pictures drawn at a time", low=0, decides="nothing"),
    "report": Key(
        True,
        bool,
        "whether a finished training writes report.html of its best checkpoint",
        decides="nothing",
    ),
    "picture_score": Key(0.5, float, "lowest score that is drawn", decides="nothing"),
    "pictures_every": length(
        0, "steps between pictures, besides those after evaluations; 0: none", decides="nothing"
    ),
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
    "root": Key(REQUIRED, str, "its folder", is_path=True, decides="nothing"),
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
    **taken(pipeline.train_batches, "exif", "reduced_decoding", num_threads={"decides": "nothing"}),
    **taken(transforms.Augmentation, *transforms.Augmentation._fields),
    **taken(mosaic.Composition, *mosaic.Composition._fields),
}
OPTIMIZER = {
    **taken(
        build_optimizer,
        *("name", "schedule", "nesterov"),
        *("decay_biases", "decay_norms", "frozen"),
        learning_rate=0,
        base_batch_size=1,
        milestones={"type": tuple[int | str, ...], "is_length": True},
        decay_factor=0,
        final_ratio=0,
        warmup_ratio=0,
        warmup_steps={"type": int | str, "low": 0, "is_length": True},
        momentum=0,
        weight_decay=0,
        bias_rate=0,
        clip_norm=0,
    ),
}
