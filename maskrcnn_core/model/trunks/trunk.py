"""Trunks: an ImageNet classification network prepared for detection, its maps C2 to C5 at strides 4 to 32.

Every trunk is a module `trunk(pixels) -> list[Tensor]` with `channels`, `strides` and `levels` of its maps (level 2 is
C2) and `rounds_input`. It knows which of its layers make which map. torchvision's networks have their own trunks,
timm's share one.
"""

import torch
import torchvision

from maskrcnn_core.errors import CheckpointError, ConfigError
from maskrcnn_core.layers.frozen_norm import freeze_batch_norms, train_batch_norms
from maskrcnn_core.layers.same_padding import pad_same
from maskrcnn_core.layers.tensorflow_padding import pad_as_tensorflow
from maskrcnn_core.model.trunks.darknet import DARKNET_NAMES, TINY_FACE, darknet_trunk, load_darknet_weights
from maskrcnn_core.model.trunks.imagenet_weights import load_backbone_weights
from maskrcnn_core.model.trunks.mobilenet_v1 import MOBILENET_V1, mobilenet_v1_trunk
from maskrcnn_core.model.trunks.pixels import PixelTrunk
from maskrcnn_core.model.trunks.preactivated import PREACTIVATED_NAMES, preactivated_trunk
from maskrcnn_core.model.trunks.resnet import RESNET_NAMES, ResNetTrunk
from maskrcnn_core.model.trunks.sequential import SEQUENTIAL_NAMES, SequentialTrunk, sequential_trunk
from maskrcnn_core.model.trunks.stages import STRIDES as STRIDES
from maskrcnn_core.model.trunks.stages import dilate_stage, freeze_stages
from maskrcnn_core.model.trunks.timm_network import TIMM_NAMES, TIMM_PREFIX, TimmTrunk, timm_trunk

NAMES = (*RESNET_NAMES, *SEQUENTIAL_NAMES, *DARKNET_NAMES, TINY_FACE, MOBILENET_V1, *PREACTIVATED_NAMES, *TIMM_NAMES)

Trunk = ResNetTrunk | SequentialTrunk | TimmTrunk | PixelTrunk


def build_trunk(
    name: str,
    *,
    pretrained: bool,
    frozen_stages: int,
    stride_in_1x1: bool = False,
    dilated: bool = False,
    weights: str = "",
    norm: str = "frozen",
    padding: str = "symmetric",
) -> Trunk:
    """A trunk with exact strides and no classification head, its batch norms frozen to affines or else as `norm` says.

    Args:
        name: one of `NAMES`, or timm:NAME for any other network of timm with maps at strides 4 to 16 or 32.
        pretrained: load ImageNet weights; from the package for efficientnet_lite0, else fetched by torchvision or timm.
        frozen_stages: stages without gradient, counted from the stem (0 = none, 1 = stem, 2 = stem and C2, 5 = all).
        stride_in_1x1: as `ResNetTrunk.move_stride_to_1x1`.
        dilated: the last stage keeps stride 16, with dilated kernels (DC5).
        weights: file with a torchvision classifier's state dict, or Darknet's weights, to take the weights from.
        norm: of the stages that learn, "frozen", "sync_batch" or "group" (`BackboneConfig.norm`).
        padding: of layers with a stride, "symmetric" or "tensorflow" (`BackboneConfig.padding`).

    Raises:
        ConfigError: there is no such network, or it cannot be made into such a trunk.
        CheckpointError: the weights could not be fetched or don't fit.
    """
    trunk = _network(name, pretrained)
    if weights and name in DARKNET_NAMES:
        assert isinstance(trunk, SequentialTrunk)
        load_darknet_weights(trunk, weights)
    elif weights:
        load_backbone_weights(trunk, weights, name)
    if stride_in_1x1:
        if not isinstance(trunk, ResNetTrunk):
            raise ConfigError(f"model.backbone.stride_in_1x1: only ResNets have it, not {name}; set it to false")
        trunk.move_stride_to_1x1()
    prepare_for_detection(trunk, dilated=dilated, norm=norm, frozen_stages=frozen_stages, padding=padding)
    freeze_stages(trunk, trunk.stage_paths() if frozen_stages else [], frozen_stages)
    return trunk


def prepare_for_detection(
    trunk: Trunk,
    *,
    dilated: bool = False,
    norm: str = "frozen",
    frozen_stages: int = 0,
    padding: str = "symmetric",
) -> Trunk:
    """The tutorial's minor surgery, in place: "same" padding everywhere, batch norm as a constant affine.

    The classification head is gone since the trunk was made. Where a network already padded "same" (ResNets,
    MobileNets), its maps in eval mode stay what they were. timm's networks were padded when their trunk was made.

    Args:
        trunk: with its weights and statistics loaded.
        dilated: also undo the stride of the last stage and dilate its kernels.
        norm: "sync_batch" or "group" turn the batch norms after the first `frozen_stages` stages into norms that learn.
        padding: "tensorflow" = as `pad_as_tensorflow`.

    Raises:
        ConfigError: the last stage cannot be dilated, or there is no norm to learn.
    """
    if not isinstance(trunk, TimmTrunk):
        pad_same(trunk)
    if dilated:
        _dilate_last_stage(trunk)
    if padding == "tensorflow":
        pad_as_tensorflow(trunk)
    example = torch.zeros(1, 3, 64, 64)
    if norm != "frozen":
        frozen = {path for stage in trunk.stage_paths()[:frozen_stages] for path in stage}
        if train_batch_norms(trunk, norm, example, frozen=frozen) == 0:
            raise ConfigError(
                f"model.backbone.norm: got {norm}, but no stage that learns has a batch norm "
                f"(model.backbone.frozen_stages is {frozen_stages}); use frozen, fewer frozen stages or another network"
            )
    freeze_batch_norms(trunk, example)
    return trunk


def _dilate_last_stage(trunk: Trunk) -> None:
    """C5 at stride 16 ("DC5" in detectron2; Dai et al., R-FCN, NIPS 2016, "À trous and stride")."""
    if trunk.strides != STRIDES:
        raise ConfigError(
            f"model.pyramid.kind: got dc5 for a backbone with maps at strides {trunk.strides}, expected {STRIDES}; "
            "use c4 or another backbone"
        )
    dilated = dilate_stage(trunk, trunk.stage_paths()[-1])
    if dilated == 0:
        raise ConfigError(
            "model.pyramid.kind: got dc5, but the last stage of this backbone has no convolution to dilate; use c4, "
            "which has the same map"
        )
    trunk.strides = (*trunk.strides[:-1], trunk.strides[-2])
    if isinstance(trunk, TimmTrunk) and (fault := trunk.size_fault((65, 97))):
        raise ConfigError(f"model.pyramid.kind: got dc5, but {trunk.name} with its last stage dilated {fault}; use c4")


def _network(name: str, pretrained: bool) -> Trunk:
    """The trunk as its library makes it."""
    library = "timm" if name in TIMM_NAMES or name.startswith(TIMM_PREFIX) else "torchvision"
    if library == "torchvision" and name not in NAMES:
        known = ", ".join(NAMES)
        raise ConfigError(f"model.backbone.name: got {name!r}, expected one of {known}, or {TIMM_PREFIX}NAME")
    if name in (*DARKNET_NAMES, TINY_FACE, MOBILENET_V1, *PREACTIVATED_NAMES):
        if pretrained:
            raise ConfigError(
                f"model.backbone.pretrained: got true, but there are no ImageNet weights of {name} to fetch; set it to "
                "false"
            )
        if name in (*DARKNET_NAMES, TINY_FACE):
            return darknet_trunk(name)
        return mobilenet_v1_trunk() if name == MOBILENET_V1 else preactivated_trunk()
    try:
        if name in RESNET_NAMES:
            return ResNetTrunk(torchvision.models.get_model(name, weights="DEFAULT" if pretrained else None))
        if name in SEQUENTIAL_NAMES:
            return sequential_trunk(name, pretrained=pretrained)
        return timm_trunk(name, pretrained=pretrained)
    except (OSError, RuntimeError) as error:
        if not pretrained:
            raise
        raise _offline(name, library, error) from error


def _offline(name: str, library: str, error: Exception) -> CheckpointError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return CheckpointError(
        f"model.backbone.pretrained: {library} could not fetch the ImageNet weights of {name} ({reason}). "
        "Without a network, set model.backbone.name to efficientnet_lite0, whose weights are in its package, "
        "or model.backbone.pretrained to false"
    )
