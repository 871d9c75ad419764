"""torchvision's one-stage detectors with seeded random weights that behave like trained ones."""

from typing import Any, Literal

import torch
from torch import nn
from torchvision.models import detection

OneStageModel = Literal["retinanet_resnet50_fpn", "retinanet_resnet50_fpn_v2", "fcos_resnet50_fpn"]

_NEVER = -60.0
"""A logit that no score comes from."""


def one_stage_model(name: OneStageModel, short_side: int, long_side: int, **settings: object) -> nn.Module:
    """A peer with many confident detections.

    Batch-norm statistics are perturbed and the predictors scaled. Class 0, which stands for nothing, is never right, as
    in a trained model.

    Args:
        name: torchvision's.
        short_side, long_side: limits of its resizing, pixels.
        settings: further arguments of torchvision's model.
    """
    torch.manual_seed(0)
    model: Any = getattr(detection, name)(
        weights=None, weights_backbone=None, min_size=short_side, max_size=long_side, **settings
    )
    classes, boxes = model.head.classification_head, model.head.regression_head
    grouped = any(isinstance(module, nn.GroupNorm) for module in model.head.modules())
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.uniform_(0.5, 1.0)
                module.bias.normal_(0, 0.1)
        if not grouped:  # else the signal fades in four convolutions
            for module in model.head.modules():
                if isinstance(module, nn.Conv2d) and module.out_channels == module.in_channels:
                    module.weight.mul_(2.5)
        classes.cls_logits.weight.mul_(4.0 if grouped else 8.0)
        classes.cls_logits.bias[:: classes.num_classes] = _NEVER
        boxes.bbox_reg.weight.mul_(2.0)
        boxes.bbox_reg.bias.uniform_(-0.3, 0.3)
        if name.startswith("fcos"):
            boxes.bbox_reg.bias.fill_(2.0)
            boxes.bbox_ctrness.weight.mul_(5.0)
            classes.cls_logits.weight.mul_(2.0)
    peer: nn.Module = model.eval()
    return peer
