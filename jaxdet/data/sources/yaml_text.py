"""YAML as settings files have it: mappings, lists and text, and nothing that can grow or run."""

from pathlib import Path
from typing import Any

import yaml

from jaxdet.text_files import read_text
from jaxdet.types import UserError

MAX_BYTES = 2**22  # A thousand classes take 20 kB; PyYAML wants a hundred times a file's memory.


def read_mapping(path: Path) -> dict[str, Any]:
    """Reads a file that holds one mapping; all that is no mapping or list is text, as written.

    So a class may be called no, on or 1e3.

    Raises:
        UserError: if it is no YAML or no mapping, says a key twice, is nested too deeply, has tags,
            which can make objects, or aliases, by which a short text can stand for an endless one.
        OSError: if it cannot be read.
    """
    if path.stat().st_size > MAX_BYTES:
        raise UserError(f"{path}: wanted a list of classes and folders, found a file above 4 MiB")
    text = read_text(path)
    try:
        found = yaml.load(text, Loader=_PlainLoader)
    except RecursionError:
        raise UserError(f"{path}: no YAML of a data set: it is nested too deeply") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark else path
        reason = getattr(error, "problem", None) or " ".join(str(error).split())
        raise UserError(f"{place}: not YAML: {reason}") from None
    except (ValueError, OverflowError):  # PyYAML looks up the letter of any number.
        raise UserError(f"{path}: not YAML: an escape names no letter") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: wanted keys such as train, val and names; found {found!r:.60}")
    return found


class _PlainLoader(yaml.BaseLoader):
    def compose_node(self, parent, index):
        event = self.peek_event()
        said = "an alias" if isinstance(event, yaml.AliasEvent) else getattr(event, "tag", None)
        if said:
            said = f"{said.replace('tag:yaml.org,2002:', '!!')} is not read here"
            raise yaml.composer.ComposerError(None, None, said, event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.value in seen:
                said = "a key is said twice" if isinstance(key, yaml.ScalarNode) else "no plain key"
                raise yaml.constructor.ConstructorError(None, None, said, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)
