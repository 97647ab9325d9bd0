"""Writes docs/settings.md: every setting of a config, with default and meaning.

python docs/write_settings.py
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxdet.commands import declared, keys, schema
from jaxdet.data import sources
from jaxdet.detectors import DETECTORS, nested
from jaxdet.evaluation import EVALUATIONS
from jaxdet.models import MODULES

PAGE = Path(__file__).with_name("settings.md")
INTRODUCTION = """\
# Settings

Every setting of a config. A recipe names those that are its own, the command line changes one by
`--config.PATH=VALUE` (or a space for the `=`), and `jaxdet.build` takes those of the model as
nested dictionaries. These are the same:

```
config.model.roi.sample.num_samples = 64  # In a recipe.
--config.model.roi.sample.num_samples=64  # On the command line.
jaxdet.build("faster_rcnn", num_classes=3, roi={"sample": {"num_samples": 64}})  # In Python.
```

Lengths are in steps, or such as `"12 epochs"`: then an epoch is the number of images over
`batch_size`. Tuples are written `"(1, 2)"`. "~" in paths is the home folder. A setting without a
default must be said. `train.py --config=A --against=B` prints what differs between two configs.
This page is written by `docs/write_settings.py`.
"""


def write_page() -> str:
    """The whole page."""
    sections = [INTRODUCTION, "## The run\n", _table(declared.RUN)]
    sections += ["## data\n", _table(declared.DATA, "data.")]
    for source in sources.SOURCES:
        options = schema.options(source)
        if options:
            sections += [f"### data.options of `{source}`\n", _table(options, "data.options.")]
    name = {"name": _describe()["evaluation"]["name"]}
    sections += ["## evaluation\n", _table(name, "evaluation.")]
    for name in EVALUATIONS:
        found = _describe(evaluation={"name": name})["evaluation"]
        del found["name"]
        sections += [f"### evaluation of `{name}`\n", _table(found, "evaluation.")]
    sections += ["## optimizer\n", _table(declared.OPTIMIZER, "optimizer.")]
    for name in DETECTORS:
        found = _describe(detector=name)
        sections += [f"## model of `{name}`\n", _table(found["model"], "model.")]
    sections += ["## Modules\n", _modules()]
    return "\n".join(sections)


def _describe(**config: Any) -> dict[str, Any]:
    return schema.describe({"detector": "rpn", "data": {"source": "voc"}, **config})


def _modules() -> str:
    """The settings of modules that no detector has by default."""
    text = "`model.backbone.name` and its like choose another module, which has its own settings.\n"
    tables = [text]
    shown = {"resnet", "fpn", "rpn_head", "box_head", "retina_head"}
    for name, module in MODULES.items():
        if name not in shown:
            fields = nested.fields_of(module())
            tables += [f"### `{name}`\n", _table(keys.taken(module, *fields))]
    return "\n".join(tables)


def _table(tree: Mapping[str, Any], prefix: str = "") -> str:
    rows = ["| setting | type | default | meaning |", "|---|---|---|---|"]
    for path, key in schema.leaves(tree):
        default = "" if key.default is keys.REQUIRED else f"`{key.default!r}`"
        kind = "steps or epochs" if key.is_length else nested.written(key.type)
        kind += "" if key.low is None else f", at least {key.low}"
        kind += "" if key.below == math.inf else f", less than {key.below}"
        meaning = key.meaning.rstrip(".").replace("|", "/")
        rows.append(f"| `{prefix}{path}` | {kind} | {default} | {meaning} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    PAGE.write_text(write_page())
