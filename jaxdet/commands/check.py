"""Looks through a whole data set before anything learns from it, and says what is wrong.

    jaxdet check --config=FILE [--pictures] [--out=FILE.html]
    jaxdet check --root=FOLDER

Reads the annotations of the training and the validation split, prints what there is to
learn, and writes a page: classes, sizes and shapes beside the anchors of the detector,
what is annotated wrongly or twice, and the worst images, drawn.

With --pictures every picture is decoded as well: which are broken, of another size than
annotated, or there twice, within a split and across both (by a hash of the file). Without
it only names are compared. Data that holds its pictures itself (TFDS) is always read.

With --root alone it says which format a folder is in, and prints the lines of a config for it.

Ends with 0 where there is something to learn, else, and where the data cannot be read, with
1: every mistake in it on a line of its own.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from ml_collections import ConfigDict

from jaxdet.commands import (
    check_page,
    command_line,
    config_files,
    ending,
    fitting,
    mistakes,
    splits,
)
from jaxdet.data import inventory, survey
from jaxdet.data.survey import Note, Split
from jaxdet.types import Source, UserError

NAME = "check.html"
LINES = 3  # Of each kind of what is wrong that is printed; the page has them all.


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Runs the command."""
    argv = argv or sys.argv
    if any(re.match("--root(=|$)", argument) for argument in argv[1:]):
        with ending.in_one_line(argv):
            sys.exit(_recognise(argv))
    command_line.run(check, argv, usage=__doc__, define=_define_flags)


def _recognise(argv: Sequence[str]) -> int:
    """Says what a folder is; gives the exit status."""
    from jaxdet.data.sources.recognise import as_config, recognise

    parser = ending.Parser(argv[0], __doc__)
    parser.add_argument("--root", required=True)
    parser.add_argument("--debug", action="store_true")
    found = recognise(parser.parse_args(argv[1:]).root)
    print(f"# {found.format}, by {found.reason}\n{as_config(found)}")
    return 0


def check(arguments: command_line.Arguments) -> int:
    """Reads, prints and writes the page; gives the exit status."""
    config, _, flags = arguments
    config.data.proposals, config.data.max_proposals = "", 0  # Not a part of the data.
    mistakes.check_settings(config)
    sources, wrong = _open(config)
    if wrong:
        for line in wrong:
            print(f"error: {line}", file=sys.stderr)
        return 1
    splits = [_look(config, name, source, flags.pictures) for name, source in sources.items()]
    names = tuple(splits[0].source.class_names)
    print(inventory.table({each.name: each.counts for each in splits}, names))
    notes = _find_notes(splits)
    said = [
        sentence
        for each in splits
        for sentence in inventory.warnings(each.counts, each.name, names)
    ]
    fit = fitting.measure(
        config_files.with_classes(config, names), {each.name: each.judged for each in splits}
    )
    for line in [*fit.lines, *_describe(notes)]:
        print(line)
    for sentence in said:
        print(f"warning: {sentence}", file=sys.stderr)
    out = Path(flags.out).expanduser()
    check_page.write(out, config, splits, notes, said, fit)
    print(f"page: {out}")
    return int(_is_useless(splits[0]))


def _open(config: ConfigDict) -> tuple[dict[str, Source], list[str]]:
    """The sources of both splits by name, and all mistakes that keep them from being read."""
    data, found, wrong = config.data, {}, []
    classes = tuple(data.classes)
    for split in dict.fromkeys((data.train_split, data.eval_split)):
        try:
            found[split] = splits.open_source(config, split, classes)
            # The labels of the second are those of the first.
            classes = splits.class_names(config, split, found[split])
        except UserError as error:
            wrong += getattr(error, "lines", [str(error)])
    return found, wrong


def _look(config: ConfigDict, name: str, source: Source, pictures: bool) -> Split:
    data, found = config.data, []
    if pictures or not hasattr(source, "annotations"):
        found = survey.look(source, exif=data.exif, threads=data.num_threads, name=name)
        examples = [picture.example for picture in found]
    else:
        examples = source.annotations()
    files = survey.name_files(source, examples)
    judged = inventory.judge(examples, **{key: data[key] for key in inventory.KEYS})
    dropped = getattr(source, "dropped", {})
    counts = inventory.add_up(judged, len(source.class_names), dropped)
    return Split(name, source, files, found, judged, counts)


def _find_notes(splits: Sequence[Split]) -> list[Note]:
    """All that is wrong, the splits one after the other."""
    notes: list[Note] = []
    for each in splits:
        notes += survey.find_faults(each)
        if each.pictures:
            notes += survey.find_troubles(each)
    files = {each.name: each.files for each in splits}
    if splits[0].pictures:
        digests = {each.name: [picture.digest for picture in each.pictures] for each in splits}
        return [*notes, *survey.find_same(digests, files, survey.SHARED)]
    names = {each.name: [Path(file).name for file in each.files] for each in splits}
    shared = survey.find_same(names, files, survey.SAME_NAME)
    # One name in two folders of a split is nothing.
    return [*notes, *(note for note in shared if note.kind == survey.SAME_NAME)]


def _describe(notes: Sequence[Note]) -> list[str]:
    """A line for each kind of what is wrong, and the first files below it."""
    lines = []
    for kind, own in check_page.by_kind(notes).items():
        lines.append(f"{kind}: {len(own)} file{'s' * (len(own) > 1)}")
        lines += [f"  {note.file}: {note.text}" for note in own[:LINES]]
        lines += ["  ..."] * (len(own) > LINES)
    return lines


def _is_useless(split: Split) -> bool:
    """Whether a training could learn nothing from it."""
    readable = not split.pictures or any(not picture.trouble for picture in split.pictures)
    return not readable or bool(inventory.why_nothing(split.counts))


def _define_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--root", metavar="FOLDER", help="say which format this folder is in, and nothing else")
    add("--pictures", action="store_true", help="decode every picture, and find those alike")
    add("--out", default=NAME, metavar="FILE.html", help=f"the page; {NAME}")
