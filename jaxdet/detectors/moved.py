"""Settings that stood elsewhere when a run or a model file was written."""

from collections.abc import Mapping
from typing import Any


def moved(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A detector's settings in the places of today.

    Args:
        settings: nested, as a config or a model file keeps them. Of a ResNet they
            may hold a `remat` of its own, which is the detector's now.
    """
    backbone = settings.get("backbone")
    if not isinstance(backbone, Mapping) or "remat" not in backbone:
        return dict(settings)
    rest = {key: value for key, value in backbone.items() if key != "remat"}
    return {"remat": "blocks" if backbone["remat"] else "none", **settings, "backbone": rest}
