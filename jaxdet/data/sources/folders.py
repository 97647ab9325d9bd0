"""Pictures in folders: found by few looks at the disk, and none outside of what the user named."""

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

from jaxdet.data import decoding
from jaxdet.types import UserError


def find_files(folder: Path, names: Sequence[str], *, root: Path, where: object) -> list[Path]:
    """The files of a folder that an annotation file names; folders are listed, not files asked.

    Args:
        folder: which the names start from; a link of the user's is followed.
        names: paths below it, also with Windows' slashes.
        root: of the data; links of single files may lead to where it is, not out of it.
        where: the annotation file, for messages.

    Raises:
        UserError: for a missing folder or file, an absolute name, one with "..", or
            one that is a link to a place outside.
    """
    if not folder.is_dir():
        raise UserError(f"no image folder {folder}")
    places = [_below(name, where) for name in names]
    inside = {place.resolve() for place in (folder, root)}
    parents = [place.parent for place in places]
    listed = {parent: _list(folder / parent, inside) for parent in set(parents)}
    found = [listed[parent].get(place.name) for place, parent in zip(places, parents, strict=True)]
    missing = [place for place, stays in zip(places, found, strict=True) if stays is None]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(places)} images are missing, first {folder / missing[0]}"
        )
    for place, stays in zip(places, found, strict=True):
        if not stays:
            raise UserError(f"{where}: image {folder / place} is a link that leads out of {root}")
    return [folder / place for place in places]


def list_pictures(folder: Path, *, root: Path, where: object) -> list[Path]:
    """The pictures in a folder and the folders in it, sorted.

    Args:
        folder: which is listed; hidden ones in it are passed over.
        root: see `find_files`.
        where: what names the folder, for messages.

    Raises:
        UserError: for a missing folder, and a picture that is a link to a place outside.
    """
    names = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inner = Path(parent).relative_to(folder)
        prefix = "" if inner == Path() else f"{inner.as_posix()}/"
        pictures = [n for n in files if os.path.splitext(n)[1].lower() in decoding.SUFFIXES]
        names += [prefix + name for name in pictures if name[0] != "."]
    return find_files(folder, sorted(names), root=root, where=where)


def check_only_split(split: str, annotations: str) -> None:
    """Refuses to read the same annotations as a second split: what is learnt would be evaluated.

    Raises:
        UserError: if their template has no "{split}", and it is not "train".
    """
    if split != "train" and "{split}" not in annotations:
        raise UserError(
            f"there is no split {split!r}: data.options has no '{{split}}' for its annotations, so "
            "that there is one, 'train'; data.val_fraction holds a part of it out"
        )


def _below(name: str, where: object) -> PurePosixPath:
    """A name as a path below its folder."""
    if "\\" in name:
        name = PureWindowsPath(name).as_posix()
    path = PurePosixPath(name)
    drive = ":" in name and PureWindowsPath(name).drive
    if path.is_absolute() or ".." in path.parts or not path.name or drive:
        raise UserError(f"{where}: file_name wants a path below the image folder, found {name!r}")
    return path


def _list(folder: Path, inside: set[Path]) -> dict[str, bool]:
    """The names in a folder, and whether each stays inside."""
    here, led = _stays(folder, inside), {}
    try:
        with os.scandir(folder) as entries:
            return {
                entry.name: here and (not entry.is_symlink() or _leads(entry.path, inside, led))
                for entry in entries
            }
    except (FileNotFoundError, NotADirectoryError):
        return {}


def _leads(link: str, inside: set[Path], led: dict[str, tuple[bool, set[str]]]) -> bool:
    """Whether a link leads to a place inside; a folder that many lead to is asked once.

    Args:
        link: its path.
        inside: the places.
        led: of folders that were led to, whether they are inside, and the links in them.
    """
    folder, name = os.path.split(os.path.join(os.path.dirname(link), os.readlink(link)))
    if folder not in led:
        try:
            with os.scandir(folder) as entries:
                links = {entry.name for entry in entries if entry.is_symlink()}
        except OSError:
            return _stays(link, inside)
        led[folder] = _stays(folder, inside), links
    stays, links = led[folder]
    further = name in links or name in ("", os.curdir, os.pardir)
    return _stays(link, inside) if further else stays


def _stays(path: str | Path, inside: set[Path]) -> bool:
    place = Path(path).resolve()
    return any(place.is_relative_to(each) for each in inside)
