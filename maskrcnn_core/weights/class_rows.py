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
        by_anchor: the rows are those of one anchor after those of another.
    """

    background: bool
    by_anchor: bool = False


def class_layouts(config: ModelConfig) -> dict[str, ClassLayout]:
    """The layers whose rows belong to classes, by their module's name."""
    layouts: dict[str, ClassLayout] = {}
    if config.dense.enabled and config.dense.finds == "detections":
        background = config.dense.detection.score_from == "softmax"
        by_anchor = config.dense.head.kind != "box_masks"
        layouts |= dict.fromkeys(_dense_predictors(config), ClassLayout(background=background, by_anchor=by_anchor))
    if config.box_head.enabled:
        votes = config.regions.transform in ("position_pool", "position_align")
        where = "regions.box.transform" if votes else "regions.box.head"  # the bins of one class follow each other
        layouts[f"{where}.classes"] = ClassLayout(background=True)
        if not config.box_head.class_agnostic:
            layouts[f"{where}.deltas"] = ClassLayout(background=False)
    if config.mask_head.enabled and not config.mask_head.class_agnostic:
        layouts["regions.mask.head.predictor"] = ClassLayout(background=config.mask_head.activation == "softmax")
    return layouts


def _dense_predictors(config: ModelConfig) -> list[str]:
    """The dense head's layers with rows for classes: one for all levels, or one for each."""
    if config.dense.head.kind == "box_masks":
        return ["dense.head.masks"]
    if config.dense.head.kind != "levels":
        return ["dense.head.logits"]
    last = ".pointwise" if config.dense.head.depthwise else ""
    return [f"dense.head.logits.{level}{last}" for level in range(config.pyramid.num_levels)]


def common_categories(ours: ModelConfig, theirs: ModelConfig) -> dict[int, int]:
    """Label of ours -> label of theirs with the same name."""
    label_of = {category.name: label for label, category in enumerate(theirs.categories)}
    return {
        label: label_of[category.name] for label, category in enumerate(ours.categories) if category.name in label_of
    }


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
    rows: dict[str, Tensor] = {}
    for module, layout in layouts.items() if common else ():
        if class_layouts(theirs).get(module) != layout:
            continue
        for name in (f"{module}.weight", f"{module}.bias"):
            if name not in own or name not in other:
                continue
            own_rows, other_rows = (
                _by_class(tensor, len(config.categories) + layout.background, by_anchor=layout.by_anchor)
                for tensor, config in ((own[name], ours), (other[name], theirs))
            )
            if own_rows is None or other_rows is None or own_rows.shape[1:] != other_rows.shape[1:]:
                continue
            own_rows = own_rows.clone()
            for label, other_label in common.items():
                own_rows[label] = other_rows[other_label].to(own_rows)
            if layout.background:
                own_rows[-1] = other_rows[-1].to(own_rows)
            rows[name] = (own_rows.transpose(0, 1) if layout.by_anchor else own_rows).reshape(own[name].shape)
    return rows


def _by_class(tensor: Tensor, groups: int, *, by_anchor: bool) -> Tensor | None:
    """[groups * rows, ...], or by anchor [rows * groups, ...] -> [groups, rows, ...]; None where it does not divide."""
    if len(tensor) % groups != 0:
        return None
    return (
        torch.unflatten(tensor, 0, (-1, groups)).transpose(0, 1)
        if by_anchor
        else torch.unflatten(tensor, 0, (groups, -1))
    )
