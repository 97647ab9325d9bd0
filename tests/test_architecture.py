"""The floors of the house, held by reading the source: imports only go down."""

import ast
import collections
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "jaxdet"

GROUND = {"types", "literals", "text_files", "whole_files"}
FLOORS = {
    "types": set(),
    "literals": set(),
    "text_files": {"types"},
    "whole_files": set(),
    "ops": GROUND,
    "models": GROUND,
    "data": GROUND,
    "evaluation": GROUND,
    "visualize": GROUND,
    "report": GROUND | {"evaluation"},
    "detectors": GROUND | {"ops", "models"},
    "training": GROUND,
    "interop": GROUND | {"models"},
    "model_file": GROUND | {"detectors", "interop"},
    "export": GROUND | {"data", "detectors", "model_file"},
    "prediction": GROUND | {"data", "evaluation", "model_file", "visualize"},
}
# May import everything, and no other room imports them.
TOP = {"__main__", "commands", "loading"}
# What jaxdet/__init__.py names of the top.
NAMED = {"loading"}
HEAVY = (
    "absl cv2 faster_coco_eval grain ml_collections orbax tensorboardX tensorflow "
    "tensorflow_datasets torch tqdm"
).split()
# A source that reads a format and the metrics that go with it have the format's name.
SAME_FORMAT = {"coco.py", "voc.py"}
# Recognised are weights of other systems, and formats of data.
SAME_QUESTION = {"recognise.py"}
BANNED_NAMES = {"util", "utils", "misc", "common", "helper", "helpers"}

MODULES = sorted(PACKAGE.rglob("*.py"))
CONFIGS = sorted((ROOT / "configs").glob("*.py"))
FOLDERS = ("jaxdet", "configs", "tests", "examples", "benchmarks")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
SOURCES += sorted(ROOT.glob("*.py"))


def name_of(path):
    return str(path.relative_to(ROOT))


def room_of(path):
    """The part of the package that a module belongs to; "" for jaxdet/__init__.py."""
    first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


def imports_of(path):
    """Dotted names of all that a file imports, wherever in the file."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def imported_rooms(path):
    parts = [name.split(".") for name in imports_of(path)]
    return {part[1] if len(part) > 1 else "" for part in parts if part[0] == "jaxdet"}


def test_every_room_has_a_floor():
    assert {room_of(path) for path in MODULES} <= {"", *FLOORS, *TOP}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_only_go_down(path):
    room = room_of(path)
    above = {"": {*FLOORS, *NAMED}, **dict.fromkeys(TOP, {*FLOORS, *TOP})}
    allowed = above[room] if room in above else FLOORS[room] | {room}

    assert imported_rooms(path) <= allowed


@pytest.mark.parametrize(
    "module, below", [("contracts", set()), ("boxes", {"jaxdet.ops.contracts"})]
)
def test_contracts_and_boxes_are_the_ground_of_ops(module, below):
    ops = {name for name in imports_of(PACKAGE / "ops" / f"{module}.py") if "jaxdet.ops" in name}

    assert {name.rsplit(".", 1)[0] for name in ops} <= below


@pytest.mark.parametrize("path", sorted((PACKAGE / "data").rglob("*.py")), ids=name_of)
def test_data_never_touches_a_device(path):
    assert "jax" not in {name.split(".")[0] for name in imports_of(path)}


def test_only_the_training_steps_use_pmap_and_count_devices():
    names = {"pmap", "shard_map", "device_count", "local_device_count"}
    users = {name_of(path) for path in SOURCES if names & _identifiers(path)}

    assert {name for name in users if not name.startswith("tests/")} == {"jaxdet/training/steps.py"}


def test_configs_import_only_ml_collections_and_one_another():
    siblings = {path.stem for path in CONFIGS}
    imported = {name_of(path): {n.split(".")[0] for n in imports_of(path)} for path in CONFIGS}

    assert CONFIGS
    assert {
        n: i - siblings for n, i in imported.items() if i - siblings != {"ml_collections"}
    } == {}


@pytest.mark.parametrize(
    "used, unwanted",
    [
        ("dir(jaxdet)", ["jax", "numpy", "flax", *HEAVY]),
        ("jaxdet.ops.nms, jaxdet.UserError", ["flax", "optax", *HEAVY]),
        # Flax itself loads absl.
        ("jaxdet.load", ["optax", *sorted({*HEAVY} - {"absl"})]),
        ("jaxdet.faster_rcnn, jaxdet.models", ["optax", *sorted({*HEAVY} - {"absl"})]),
    ],
)
def test_what_is_used_of_jaxdet_loads_nothing_heavy(used, unwanted):
    code = f"import sys, jaxdet; {used}; print([m for m in {unwanted} if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )

    assert result.stdout.strip() == "[]"


def test_imports_are_absolute():
    relative = {
        name_of(path)
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.level
    }

    assert relative == set()


def test_no_file_or_folder_is_a_box_for_odds_and_ends():
    parts = {part.removesuffix(".py") for path in SOURCES for part in name_of(path).split("/")}

    assert parts & BANNED_NAMES == set()


def test_no_two_files_of_the_package_share_a_name():
    counts = collections.Counter(path.name for path in MODULES)
    shared = {name for name, count in counts.items() if count > 1}

    assert shared == {"__init__.py", *SAME_FORMAT, *SAME_QUESTION}


def _identifiers(path):
    """Names and attributes that the code uses; docstrings and comments may say more."""
    tree = ast.parse(path.read_text())
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return names | {part for name in imports_of(path) for part in name.split(".")}
