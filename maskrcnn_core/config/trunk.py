"""The trunk: which network, what of it learns."""

from dataclasses import dataclass
from typing import Literal

from maskrcnn_core.config.checks import require, require_typed


@dataclass(frozen=True)
class BackboneConfig:
    """The trunk: an ImageNet classification network without its head."""

    name: str = "resnet50"
    """A torchvision network (resnet18 .. resnet152, resnext50_32x4d, resnext101_32x8d, wide_resnet50_2, alexnet, vgg16,
    mobilenet_v2, mobilenet_v3_large, ...; for SSD vgg16_reduced, mobilenet_v2_expanded, mobilenet_v3_large_expanded,
    mobilenet_v3_large_reduced); efficientnet_lite0 (weights in its package, works offline); inception_v3,
    inception_v4, inception_resnet_v2; Darknet's darknet19, darknet_tiny, yolov1, yolov1_tiny; mobilenet_v1; those of
    face detectors, tiny_face (face-api) and resnet10_preactivated (OpenCV); timm:NAME for any other with feature
    maps."""
    pretrained: bool = True
    """Start training from the backbone's ImageNet weights (fetched once by torchvision or timm where not packaged)."""
    weights: str = ""
    """File with ImageNet weights of the backbone (a torchvision .pth; for Darknet's networks its .weights, whole or cut
    as darknet19_448.conv.23) to start from instead; empty = as pretrained."""
    frozen_stages: int = 2
    """How many stages get no gradient, counted from the stem: 0 = none, 2 = stem and first stage, 5 = all."""
    norm: Literal["frozen", "sync_batch", "group"] = "frozen"
    """What becomes of the batch norms in the stages that learn: frozen = a constant affine, as in the reference
    systems; sync_batch = batch norm that learns, its statistics over the images of all workers; group = group norm,
    which needs long training, since ImageNet weights were made with batch norm. Frozen stages have frozen norms."""
    padding: Literal["symmetric", "tensorflow"] = "symmetric"
    """How layers with a stride are padded, also those of model.pyramid's tail: symmetric = alike on both sides;
    tensorflow = as much as is missing, the odd pixel at the right and the bottom ("SAME")."""
    stride_in_1x1: bool = False
    """ResNet bottlenecks subsample in their first 1x1 convolution (Caffe's and detectron2's weights) instead of the
    3x3 (torchvision)."""

    def __post_init__(self) -> None:
        require_typed("model.backbone", self)
        require(bool(self.name), "model.backbone.name", self.name, "a backbone name")
        require(0 <= self.frozen_stages <= 5, "model.backbone.frozen_stages", self.frozen_stages, "0 to 5")
