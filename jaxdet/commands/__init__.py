"""What train.py and eval.py share: from a config to sources, detector, variables and results."""

from jaxdet.commands.build import (
    abstract_variables,
    build_detector,
    build_source,
    class_names,
    first_variables,
    make_optimizer,
    train_batches,
)
from jaxdet.commands.check import check
from jaxdet.commands.predict import draw, evaluate, measure
from jaxdet.commands.run import losses_of_data, run_command

__all__ = [
    "abstract_variables",
    "build_detector",
    "build_source",
    "check",
    "class_names",
    "draw",
    "evaluate",
    "first_variables",
    "losses_of_data",
    "make_optimizer",
    "measure",
    "run_command",
    "train_batches",
]
