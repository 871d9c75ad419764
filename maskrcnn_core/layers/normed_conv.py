"""Convolution with a choice of normalisation, for parts that are trained from scratch (FPN, box head)."""

import math

import torch
from torch import nn

from maskrcnn_core.errors import ConfigError
from maskrcnn_core.layers.frozen_norm import FrozenAffineConv2d
from maskrcnn_core.layers.trained_norm import BatchNormConv2d, WorkersBatchNorm2d

# Groups of channels (Wu and He, Group Normalization, ECCV 2018, section 4).
_GROUPS = 32


def normed_conv(
    in_channels: int,
    out_channels: int,
    kernel: int,
    norm: str,
    *,
    bias: bool | None = None,
    least_in_group: int = 1,
    stride: int = 1,
    padding: int | None = None,
    groups: int = 1,
) -> nn.Module:
    """A convolution, by default one that keeps height and width, and the normalisation of its output.

    Args:
        kernel: side of the kernel.
        norm: "none" (with a bias); "frozen_batch": batch norm with fixed statistics, a constant affine that starts as
            the identity and that an imported checkpoint fills; "sync_batch": batch norm that learns, over all workers;
            "group": 32 groups, fewer where they do not divide the width.
        bias: of the convolution; None = only where no norm follows.
        least_in_group: channels of a group, where the width has so many: a group of one has nothing to be normed by on
            a map of one pixel.
        stride, padding, groups: of the convolution; padding None = half the kernel.

    Returns:
        [N, in_channels, H, W] -> [N, out_channels, H', W']. Parameters: `weight` (and `bias`; or `scale` and `shift`);
        for the norms that learn those of the convolution are `0.weight` (and `0.bias`), of the norm `1.weight` and so
        on.

    Raises:
        ConfigError: an unknown norm.
    """
    if norm not in ("none", "frozen_batch", "sync_batch", "group"):
        raise ConfigError(f"norm: got {norm!r}, expected 'none', 'frozen_batch', 'sync_batch' or 'group'")
    conv = nn.Conv2d(
        in_channels,
        out_channels,
        kernel,
        stride=stride,
        padding=kernel // 2 if padding is None else padding,
        groups=groups,
        bias=norm == "none" if bias is None else bias,
    )
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    if norm == "frozen_batch":
        return FrozenAffineConv2d(conv, torch.ones(out_channels), torch.zeros(out_channels))
    if norm == "sync_batch":
        return BatchNormConv2d(conv, WorkersBatchNorm2d(out_channels))
    if norm == "group":
        norm_groups = math.gcd(_GROUPS, out_channels)
        while norm_groups > 1 and out_channels // norm_groups < least_in_group:
            norm_groups //= 2
        return nn.Sequential(conv, nn.GroupNorm(norm_groups, out_channels))
    return conv
