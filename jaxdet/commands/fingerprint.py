"""The fingerprint of a run: what its numbers come from, in run.json, for each start of it.

Nothing in it says who ran it or where: no name of a user or a machine, no path, and
of the environment XLA_FLAGS alone.
"""

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from jaxdet.commands import schema
from jaxdet.types import Example, Source
from jaxdet.whole_files import write_json

NAME = "run.json"  # In the workdir.
PACKAGE = Path(__file__).parents[1]  # jaxdet's own folder.
PACKAGES = ("jaxdet", "jax", "jaxlib", "flax", "optax", "numpy")
DIGITS = 16  # Of a hash: 64 bits tell all runs apart that anybody will ever compare.
GIT_SECONDS = 10  # For each question; a checkout on a slow network disk is not worth more.


def keep(
    workdir: Path, done: int, config: ConfigDict, sources: Mapping[str, Source], variables: Any
) -> None:
    """Adds a start to run.json; those of a part of the run that was given up leave it.

    Args:
        workdir: of the run.
        done: steps done before; at 0 the run begins anew, and so does the file.
        config: with the classes as they were found, and all lengths in steps.
        sources: what is learnt and what is evaluated, by the names of their splits.
        variables: what the detector starts with.
    """
    file = workdir / NAME
    before = [start for start in read(file) if start.get("step", 0) < done] if done else []
    start = {
        "step": done,
        "time": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "config": hash_config(config.to_dict()),
        "variables": hash_variables(variables),
        "data": {split: describe_split(config, split, source) for split, source in sources.items()},
        "code": describe_code(PACKAGE),
        "versions": {
            "python": platform.python_version(),
            **{package: metadata.version(package) for package in PACKAGES},
        },
        "devices": describe_devices(),
        # The value of a flag may be a folder of somebody's.
        "xla_flags": re.sub(r"=\S*[/\\]\S*", "=(a path)", os.environ.get("XLA_FLAGS", "")),
    }
    write_json(file, {"starts": [*before, start]})


def read(file: Path) -> list[dict[str, Any]]:
    """The starts in a run.json; none of a file that is not there or says something else."""
    try:
        starts = json.loads(file.read_text())["starts"]
        return [start for start in starts if isinstance(start, dict)]
    except (OSError, ValueError, TypeError, KeyError):
        return []


def hash_config(config: Mapping[str, Any]) -> str:
    """A hash of the settings that decide numbers, whatever their order.

    Paths are left out: what lies there is hashed by itself.
    """
    free = schema.free_settings(config)
    deciding = {path: value for path, value in without_paths(config).items() if path not in free}
    return _digest(json.dumps(deciding, sort_keys=True).encode())


def without_paths(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, as "data.classes", that do not say where something lies on a machine."""
    paths = {path for path, key in schema.leaves(schema.describe(config)) if key.is_path}
    found = {path: value for path, value in schema.leaves(config) if path not in paths}
    # Of a file of one's own the name alone, wherever it lies.
    return found | {"data.source": re.split(r"[/\\]", found["data.source"])[-1]}


def hash_variables(variables: Any) -> str:
    """A hash of arrays, their names, shapes and types."""
    found = hashlib.sha256()
    for name, leaf in sorted(flatten_dict(jax.device_get(variables), sep="/").items()):
        found.update(f"{name} {leaf.shape} {leaf.dtype};".encode())
        found.update(np.ascontiguousarray(leaf).tobytes())
    return found.hexdigest()[:DIGITS]


def describe_split(config: ConfigDict, split: str, source: Source) -> dict[str, Any]:
    """What `describe_data` says of a split, with the file of its proposals if there is one."""
    return describe_data(source, config.data.proposals.replace("{split}", split))


def describe_data(source: Source, proposals: str = "") -> dict[str, Any]:
    """How many images a source has, and a hash of its annotations in its order.

    The hash is of ids, sizes, boxes, labels, crowd and difficult; pixels are not looked
    at. Null where annotations show when images are read.

    Args:
        source: the examples.
        proposals: the file of their proposals, which is hashed, too; "" for none.
    """
    described = {"images": len(source), "annotations": None}
    if hasattr(source, "annotations"):
        described["annotations"] = _hash_annotations(source.annotations())
    if proposals:
        with open(proposals, "rb") as file:
            described["proposals"] = hashlib.file_digest(file, "sha256").hexdigest()[:DIGITS]
    return described


def describe_code(package: Path) -> dict[str, Any]:
    """A hash of jaxdet's source; its commit, and whether files differ from it, of a checkout."""
    found = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        found.update(f"{path.relative_to(package).as_posix()} ".encode() + path.read_bytes())
    code = {"source": found.hexdigest()[:DIGITS], "commit": None, "changed": None}
    root = package.parent
    if not (root / ".git").exists() or shutil.which("git") is None:
        return code
    commit = _ask_git(root, "rev-parse", "HEAD")
    status = _ask_git(root, "status", "--porcelain", "--untracked-files=no")
    if commit and status is not None:
        code |= {"commit": commit, "changed": bool(status)}
    return code


def describe_devices() -> dict[str, Any]:
    """What computes, in all processes of the run."""
    devices = jax.devices()
    return {
        "platform": devices[0].platform,
        "kinds": sorted({device.device_kind for device in devices}),
        "count": len(devices),
        "processes": jax.process_count(),
    }


def _hash_annotations(examples: Iterable[Example]) -> str:
    found = hashlib.sha256()
    for each in examples:
        size = tuple(int(side) for side in each.size)
        head = f"{each.id} {size} {len(each.labels)};"
        # What a file is called need be no UTF-8.
        found.update(head.encode("utf-8", "surrogateescape"))
        for values, kind in (
            (each.boxes, "<f4"),
            (each.labels, "<i4"),
            (each.crowd, "?"),
            (each.difficult, "?"),
        ):
            found.update(np.ascontiguousarray(values, kind).tobytes())
    return found.hexdigest()[:DIGITS]


def _ask_git(root: Path, *question: str) -> str | None:
    """Git's answer; None where it has none, as of a folder that another user owns."""
    try:
        answer = subprocess.run(
            ["git", "-C", str(root), *question],
            capture_output=True,
            text=True,
            timeout=GIT_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:DIGITS]
