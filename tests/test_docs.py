"""The documents say what the code does: signatures, snippets, doctests and pictures."""

import doctest
import importlib.util
import inspect
import json
import operator
import pathlib
import pkgutil
import pydoc
import re
import shlex
import subprocess
import sys
import typing

import cv2
import jax
import numpy as np
import pytest

import jaxdet
from jaxdet import ops
from jaxdet.commands import command_line, schema
from jaxdet.ops.contracts import annotated_shape

ROOT = pathlib.Path(__file__).parents[1]
GUIDE = (ROOT / "docs" / "ops.md").read_text()
# `contracts` is what ops are written with, not one of them.
MODULES = sorted(
    info.name
    for info in pkgutil.iter_modules(ops.__path__)
    if info.name != "contracts" and not info.name.startswith("_")
)


def load(module):
    return importlib.import_module(f"jaxdet.ops.{module}")


def public_names(module):
    """Functions and classes that a module defines, without a leading underscore."""
    return {
        name
        for name, value in vars(load(module)).items()
        if not name.startswith("_") and getattr(value, "__module__", "") == load(module).__name__
    }


def write_shape(annotation):
    """An annotated shape as the guide writes it; None where it is not an array's."""
    found = annotated_shape(annotation)
    if found is None:
        return None
    shape, is_sequence = found
    axes = []
    for axis in shape.split():
        if axis.startswith(("*", "...")):
            axes.append("...")
        elif axis.startswith("#"):
            axes.append(f"{axis[1:]} or 1")
        else:
            axes.append(axis[1:].upper() if axis.startswith("_") else axis)
    return f"[({', '.join(axes)})]" if is_sequence else f"({', '.join(axes)})"


def write_argument(parameter):
    shape = write_shape(parameter.annotation)
    text = parameter.name if shape in (None, "()") else f"{parameter.name} {shape}"
    return text + ("?" if parameter.default is None else "")


def write_setting(parameter):
    """`name`, or `name=default` where it need not be given."""
    if parameter.default is parameter.empty:
        return parameter.name
    default = parameter.default
    return f"{parameter.name}={json.dumps(default) if isinstance(default, str) else default}"


def write_name(module, name):
    """As it is taken from `ops`: with its module, unless it stands there itself."""
    return name if name in ops.__all__ else f"{module}.{name}"


def write_result(annotation):
    parts = typing.get_args(annotation)
    if typing.get_origin(annotation) is tuple and parts[-1] is not ...:
        return ", ".join(map(write_result, parts))
    return write_shape(annotation) or getattr(annotation, "__name__", str(annotation))


def write_signature(module, name):
    """A function as the guide writes it: arguments; settings -> result."""
    value = getattr(load(module), name)
    if inspect.isclass(value):
        fields = [f"{field} {write_shape(a)}" for field, a in value.__annotations__.items()]
        return f"{write_name(module, name)}({', '.join(fields)})"
    parameters = inspect.signature(value).parameters.values()
    settings = [write_setting(p) for p in parameters if p.kind is p.KEYWORD_ONLY]
    arguments = [write_argument(p) for p in parameters if p.kind is not p.KEYWORD_ONLY]
    inside = "; ".join(", ".join(part) for part in (arguments, settings) if part)
    result = write_result(inspect.signature(value).return_annotation)
    return f"{write_name(module, name)}({inside}) -> {result}"


def section(module):
    """The part of the guide under a module's heading."""
    return re.search(rf"^## {module}\n(.*?)(?=^## |\Z)", GUIDE, re.DOTALL | re.MULTILINE)[1]


def python_blocks(path):
    return re.findall(r"^```python\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("module", MODULES)
def test_the_guide_lists_every_public_name_of_a_module_as_it_is(module):
    described = set(re.findall(r"^- `(.*?)`", section(module), re.MULTILINE))

    assert described == {write_signature(module, name) for name in public_names(module)}


def test_every_name_that_the_guide_takes_from_ops_is_there_as_written():
    tables = section("If you come from elsewhere").partition("Where numbers differ")[0]
    rows = re.findall(r"^\| .*? \| (.*?) \| .*\|$", tables, re.MULTILINE)
    named = re.findall(r"`([\w.]+)`", " ".join(rows))
    named += re.findall(rf"`((?:{'|'.join(MODULES)})\.\w+)`", GUIDE)

    assert len(named) > 50
    for name in named:
        op = operator.attrgetter(name)(ops)
        assert name == write_name(op.__module__.rpartition(".")[2], op.__name__)


def test_every_setting_in_a_note_of_the_guide_exists():
    settings = {
        parameter
        for module in MODULES
        for name in public_names(module)
        for parameter in inspect.signature(getattr(load(module), name)).parameters
    }
    named = set(re.findall(r"\| .*?`(\w+)=[^`]*` \|$", GUIDE, re.MULTILINE))

    assert {"reassign_low_quality", "stds", "finest_scale"} <= named <= settings


@pytest.mark.parametrize("name", ["README.md", "docs/ops.md", "docs/detectors.md"])
def test_the_python_in_a_document_runs(name):
    blocks, names = python_blocks(ROOT / name), {}

    assert blocks
    for block in blocks:
        exec(compile(block, name, "exec"), names)


def test_the_backbone_of_the_page_is_given_in_python_and_named_on_the_command_line(
    tmp_path, monkeypatch
):
    page = ROOT / "docs" / "add_a_detector.md"
    module, *blocks = python_blocks(page)
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "backbones.py").write_text(module)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(ROOT)
    names = {}
    for block in blocks:
        exec(compile(block, "add_a_detector.md", "exec"), names)
    command = re.search(r"^```bash\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)[1]
    config = command_line.read(shlex.split(command.replace("\\\n", ""))[1:]).config
    named = jaxdet.build(config.detector, num_classes=3, **config.model.to_dict())

    images = jaxdet.Images(np.zeros((1, 64, 96, 3), np.uint8), np.array([[64, 96]]), np.ones(1))
    first, second = (
        jax.eval_shape(detector.init, jax.random.key(0), images)["params"]["backbone"]
        for detector in (names["detector"], named)
    )
    assert first == second and first["stem"]["kernel"].shape == (8, 8, 3, 16)
    written = schema.describe(config.to_dict())["model"]["backbone"]["width"]
    assert written.meaning == "channels of the first map." and written.type is int


def test_the_doctests_of_the_ops_pass(one_device):
    # In a process of their own: the annotations of made-up functions in them are not checked there.
    modules = [f"jaxdet.ops.{module}" for module in [*MODULES, "contracts"]]
    code = (
        "import doctest, importlib\n"
        f"results = [doctest.testmod(importlib.import_module(m)) for m in {modules}]\n"
        "print(sum(r.failed for r in results), sum(r.attempted for r in results))\n"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(
        command, cwd=ROOT, env=one_device, capture_output=True, text=True, check=True
    )

    failed, attempted = result.stdout.split()[-2:]
    assert failed == "0", result.stdout
    assert int(attempted) > 50


def test_every_op_has_an_example_in_its_docstring():
    finder = doctest.DocTestFinder(recurse=False)
    functions = [
        (f"{module}.{name}", getattr(load(module), name))
        for module in MODULES
        for name in public_names(module)
    ]
    without = {
        name
        for name, function in functions
        if inspect.isfunction(function)
        and not any(test.examples for test in finder.find(function, name))
    }

    assert without == set()


def test_the_pictures_of_the_guide_are_those_that_the_script_draws(tmp_path):
    spec = importlib.util.spec_from_file_location("draw_ops", ROOT / "docs" / "draw_ops.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.draw_all(tmp_path)

    committed = {path.name: path for path in (ROOT / "docs" / "images").glob("ops_*.png")}
    assert {path.name for path in tmp_path.iterdir()} == set(committed)
    assert set(re.findall(r"images/(ops_\w+\.png)", GUIDE)) == set(committed)
    for name, path in committed.items():
        drawn, kept = cv2.imread(str(tmp_path / name)), cv2.imread(str(path))
        assert drawn.shape == kept.shape
        # Letters differ with OpenCV's version, what is drawn does not.
        assert np.abs(drawn.astype(int) - kept).mean() < 4, name
        assert path.stat().st_size < 60_000


def test_the_help_of_a_detector_is_as_it_prints():
    printed = pydoc.render_doc(jaxdet.faster_rcnn, renderer=pydoc.plaintext)
    shown = re.search(r"```text\n(.*?)```", (ROOT / "docs" / "detectors.md").read_text(), re.DOTALL)

    assert shown[1].strip() == printed.partition("\n\n")[2].strip()


def test_the_page_of_settings_is_what_the_script_writes():
    spec = importlib.util.spec_from_file_location("settings", ROOT / "docs" / "write_settings.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)

    assert script.PAGE.read_text() == script.write_page()
