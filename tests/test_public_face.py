"""What `jaxdet` and `jaxdet.ops` name, and that each name leads to one place."""

import ast
import importlib
import importlib.metadata
import inspect
import operator
import pathlib
import pkgutil
import pydoc
import re

import pytest

import jaxdet
from jaxdet import ops

PACKAGE = pathlib.Path(__file__).parents[1] / "jaxdet"
# `contracts` is what ops are written with, not one of them.
OPS_FILES = {p.stem: p for p in (PACKAGE / "ops").glob("[!_]*.py") if p.stem != "contracts"}

# Names that would say too little without their module.
IN_MODULE = {
    "anchors": "inside_image octave_scales pyramid_valid",
    "assignment": "",
    "box_coder": "MAX_LOG_SIDE MAX_RATIO decode decode_grid encode encode_grid",
    "box_losses": "BOX_LOSS_KINDS IOU_FORMS box_regression",
    "boxes": "area clip cxcywh_to_xyxy diou flip_horizontal flip_vertical giou has_min_size iof "
    "iou pairwise_giou pairwise_iof pairwise_iou rescale xyxy_to_cxcywh",
    "losses": "accuracy confusion_matrix global_count l1 masked_sum sample_weights "
    "sigmoid_cross_entropy sigmoid_focal smooth_l1 softmax_cross_entropy",
    "pixels": "content_mask normalize",
    "proposals": "best_of_levels",
    "roi_pooling": "ADAPTIVE bins_of map_levels",
    "sampling": "pad_labels take_all",
    "simota": "",
    "suppression": "SOFT_NMS_METHODS",
}


def defined_names(path):
    """Public functions, classes and constants that a file itself defines."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets}
    return {name for name in names if not name.startswith("_")}


def promised_names(package):
    """Names in the imports that only editors and type checkers see, and what they come from."""
    tree = ast.parse(pathlib.Path(package.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: node.module for node in imports for alias in node.names}


def test_ops_lists_its_modules_and_the_names_that_say_enough():
    flat = [name for path in OPS_FILES.values() for name in defined_names(path)]
    in_modules = " ".join(IN_MODULE.values()).split()

    assert sorted(dir(ops)) == sorted([*OPS_FILES, *set(flat) - set(in_modules)])
    assert len(flat) == len(set(flat))  # One name, one thing.


@pytest.mark.parametrize("module", OPS_FILES)
def test_each_name_of_an_ops_module_stands_in_ops_or_behind_its_module(module):
    behind = set(IN_MODULE[module].split())
    names = defined_names(OPS_FILES[module])

    assert getattr(ops, module) is importlib.import_module(f"jaxdet.ops.{module}")
    assert behind <= names
    for name in names:
        assert hasattr(ops, name) == (name not in behind), name
        assert hasattr(getattr(ops, module), name), name
    for name in names - behind:
        assert getattr(ops, name) is getattr(getattr(ops, module), name)


def test_nothing_is_named_like_a_module_that_it_would_hide():
    in_ops = {name for path in OPS_FILES.values() for name in defined_names(path)}

    assert in_ops & {info.name for info in pkgutil.iter_modules(ops.__path__)} == set()
    rooms = {info.name for info in pkgutil.iter_modules(jaxdet.__path__)}
    assert {*dir(jaxdet)} & rooms == {"detectors", "models", "ops"}


@pytest.mark.parametrize("package", [jaxdet, ops])
def test_editors_see_the_names_that_there_are(package):
    promised = promised_names(package)

    assert {*promised} == {*dir(package)} - {"__version__"}
    for name, home in promised.items():
        assert getattr(package, name) is getattr(importlib.import_module(home), name)


@pytest.mark.parametrize("package", [jaxdet, ops])
def test_help_shows_every_function(package):
    page = pydoc.render_doc(package, renderer=pydoc.plaintext)
    shown = set(re.findall(r"^    (\w+)\(", page, re.MULTILINE))

    assert shown == {name for name in dir(package) if inspect.isfunction(getattr(package, name))}


def test_jaxdet_names_its_detectors_structs_and_version():
    names = "Batch Detections Detector Images Proposals UserError __version__ build detectors "
    names += "fast_rcnn faster_rcnn load models ops retinanet rpn yolox"

    assert dir(jaxdet) == names.split()
    assert jaxdet.__version__ == importlib.metadata.version("jaxdet")
    for name in ("fast_rcnn", "faster_rcnn", "retinanet", "rpn", "yolox"):
        assert callable(getattr(jaxdet, name)) and getattr(jaxdet, name).__name__ == name


@pytest.mark.parametrize("package", [jaxdet, ops])
def test_an_unknown_name_is_an_error(package):
    with pytest.raises(AttributeError, match=f"'{package.__name__}' has no attribute 'nsm'"):
        operator.attrgetter("nsm")(package)
