"""Predictors of other categories: the rows of those that both models know, by name.

The last layers of the heads have rows for each class. A model for other categories cannot take them as they are, not
even where there are equally many: row 3 would mean another thing. Rows of categories with one name in both are copied,
and background's with them; the rest stays as it was built.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from maskrcnn_core.config.model import ModelConfig


@dataclass(frozen=True)
class ClassLayout:
    """Rows of a predictor.

    Attributes:
        background: whether a last group of rows stands for background.
    """

    background: bool


def class_layouts(config: ModelConfig) -> dict[str, ClassLayout]:
    """The layers whose rows belong to classes, by their module's name."""
    layouts: dict[str, ClassLayout] = {}
    if config.box_head.enabled:
        layouts["regions.box.head.classes"] = ClassLayout(background=True)
        if not config.box_head.class_agnostic:
            layouts["regions.box.head.deltas"] = ClassLayout(background=False)
    if config.mask_head.enabled and not config.mask_head.class_agnostic:
        layouts["regions.mask.head.predictor"] = ClassLayout(background=config.mask_head.activation == "softmax")
    return layouts


def common_categories(ours: ModelConfig, theirs: ModelConfig) -> dict[int, int]:
    """Label of ours -> label of theirs with the same name."""
    places = {category.name: place for place, category in enumerate(theirs.categories)}
    return {place: places[category.name] for place, category in enumerate(ours.categories) if category.name in places}


def are_same_categories(ours: ModelConfig, theirs: ModelConfig) -> bool:
    """Whether every label has the same name in both."""
    return [category.name for category in ours.categories] == [category.name for category in theirs.categories]


def copied_rows(
    own: Mapping[str, Tensor], other: Mapping[str, Tensor], ours: ModelConfig, theirs: ModelConfig
) -> dict[str, Tensor]:
    """Our predictors with the rows of the categories that both have; those where nothing fits are left out.

    Args:
        own, other: state dicts of the two models.
    """
    common, layouts = common_categories(ours, theirs), class_layouts(ours)
    found: dict[str, Tensor] = {}
    for module, layout in layouts.items() if common else ():
        if class_layouts(theirs).get(module) != layout:
            continue
        for name in (f"{module}.weight", f"{module}.bias"):
            if name not in own or name not in other:
                continue
            target, source = (
                _by_class(tensor, len(config.categories) + layout.background)
                for tensor, config in ((own[name], ours), (other[name], theirs))
            )
            if target is None or source is None or target.shape[1:] != source.shape[1:]:
                continue
            target = target.clone()
            for place, origin in common.items():
                target[place] = source[origin].to(target)
            if layout.background:
                target[-1] = source[-1].to(target)
            found[name] = target.reshape(own[name].shape)
    return found


def _by_class(tensor: Tensor, groups: int) -> Tensor | None:
    """[groups * rows, ...] -> [groups, rows, ...]; None where it does not divide."""
    return torch.unflatten(tensor, 0, (groups, -1)) if len(tensor) % groups == 0 else None
