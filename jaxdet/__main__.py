"""The command line: jaxdet COMMAND, or python -m jaxdet COMMAND."""

import difflib
import importlib
import importlib.metadata
import sys
from collections.abc import Sequence
from typing import NamedTuple, NoReturn


class Command(NamedTuple):
    """A module of `jaxdet.commands`, the extra that it needs, and what it does."""

    module: str
    extra: str
    meaning: str


COMMANDS = {
    "train": Command("train", "train", "trains a detector, or resumes a run"),
    "eval": Command("evaluate", "train", "evaluates a run"),
    "predict": Command("predict", "predict", "finds objects on images and videos"),
    "convert": Command(
        "convert", "predict", "turns weights of other systems into a model, and back"
    ),
    "check": Command("check", "train", "looks through a data set, and says what is wrong with it"),
    "browse": Command("browse", "train", "draws what a training is fed"),
    "summary": Command("summary", "train", "counts parameters, FLOPs, anchors and memory"),
    "report": Command("report", "train", "says how good a detector is, and why: a page of HTML"),
    "compare": Command(
        "compare", "train", "lays runs side by side: settings, fingerprints, results, curves"
    ),
    "export": Command("export", "export", "writes a model as a file that runs without jaxdet"),
}


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Runs a command and ends the process with its status."""
    _, *arguments = sys.argv if argv is None else argv
    name, *rest = arguments or ["--help"]
    if name in ("--help", "-h"):
        print(_usage())
        sys.exit(0)
    if name == "--version":
        print(importlib.metadata.version("jaxdet"))
        sys.exit(0)
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
        sys.exit(f"error: there is no command {name!r}; {hint}")
    command = COMMANDS[name]
    try:
        module = importlib.import_module(f"jaxdet.commands.{command.module}")
    except ModuleNotFoundError as error:
        if (error.name or "jaxdet").startswith("jaxdet"):
            raise
        install = f'pip install "jaxdet[{command.extra}]"'
        sys.exit(f"error: the command {name} needs {error.name}: {install}")
    module.main([f"-m jaxdet {name}", *rest])


def _usage() -> str:
    lines = [f"    {name:<10}{command.meaning}" for name, command in COMMANDS.items()]
    last = "jaxdet COMMAND --help lists the flags of one; jaxdet --version is the version"
    return "\n".join(["usage: jaxdet COMMAND ...", "", *lines, "", last])


if __name__ == "__main__":
    main()
