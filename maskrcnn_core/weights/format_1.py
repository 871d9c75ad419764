"""Checkpoints of format 1, whose names for settings and weights were those of one system: they are read by renaming.

| format 1 | format 2 |
|---|---|
| `model.rpn`, `model.anchors` | `model.dense`, `model.dense.anchors` |
| `model.roi` | `model.regions`; its `crowd_overlap` held for anchors, too: `model.dense.crowd_overlap` |
| `rpn_head.objectness`, `rpn_head.*` | `dense.head.logits`, `dense.head.*` |
| `region_stage.*` | `regions.trunk.*` |
| `box_head.*`, `mask_head.*` | `regions.box.head.*`, `regions.mask.head.*` |
| `keypoint_head.*` | `regions.keypoints.head.*` |
"""

from collections.abc import Mapping
from typing import Any

from maskrcnn_core.errors import ConfigError

FORMAT_1 = 1

# Of format 2, where they stand in it -> of format 1. The first that fits is meant.
_SETTINGS = {
    "model.dense.crowd_overlap": "model.roi.crowd_overlap",
    "model.dense.anchors": "model.anchors",
    "model.dense": "model.rpn",
    "model.regions": "model.roi",
}

_WEIGHTS = {
    "rpn_head.objectness.": "dense.head.logits.",
    "rpn_head.": "dense.head.",
    "region_stage.": "regions.trunk.",
    "box_head.": "regions.box.head.",
    "mask_head.": "regions.mask.head.",
    "keypoint_head.": "regions.keypoints.head.",
}


_SECTIONS = {"model.rpn": "model.dense", "model.anchors": "model.dense.anchors", "model.roi": "model.regions"}


def renamed_setting(name: str) -> str:
    """A setting's name in format 2, such as `model.dense.batch_size`; the same where it has not changed."""
    section, dot, rest = ".".join(name.split(".")[:2]), ".", ".".join(name.split(".")[2:])
    return f"{_SECTIONS.get(section, section)}{dot if rest else ''}{rest}"


def has_old_names(model: Any) -> bool:
    """Whether the section `model` of a configuration is one of format 1."""
    return isinstance(model, Mapping) and not {"rpn", "anchors", "roi"}.isdisjoint(model)


def renamed_settings(model: Any) -> Any:
    """The section `model` of format 1 as format 2 has it; what is no mapping is left to whoever checks it.

    Raises:
        ConfigError: a setting that only format 2 has.
    """
    if not isinstance(model, Mapping):
        return model
    dense, regions = model.get("rpn", {}), model.get("roi", {})
    _refuse(model, "model", ("dense", "regions"))
    _refuse(dense, "model.rpn", ("anchors", "crowd_overlap"))
    renamed = {name: section for name, section in model.items() if name not in ("rpn", "anchors", "roi")}
    if isinstance(dense, Mapping):
        own = dict(dense)
        if "anchors" in model:
            own["anchors"] = model["anchors"]
        if isinstance(regions, Mapping) and "crowd_overlap" in regions:
            own["crowd_overlap"] = regions["crowd_overlap"]
        dense = own
    return {**renamed, "dense": dense, "regions": regions}


def _refuse(section: Any, where: str, names: tuple[str, ...]) -> None:
    for name in names if isinstance(section, Mapping) else ():
        if name in section:
            raise ConfigError(f"{where}.{name} is not a setting of format {FORMAT_1}; expected it in format 2 only")


def in_names_of_format_1(message: str) -> str:
    """A message about settings of format 2 with the names that a file of format 1 has for them."""
    for new, old in _SETTINGS.items():
        message = message.replace(new, old)
    return message


def renamed_weight(name: str) -> str:
    """A weight's name in format 2."""
    for old, new in _WEIGHTS.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name
