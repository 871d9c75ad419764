"""State dicts with the names and shapes that other frameworks' checkpoints have, written down from those frameworks'
modules and independent of the importer's tables.

On the `meta` device they weigh nothing: for tests of names and shapes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCKS = {"R_50": (3, 4, 6, 3), "R_101": (3, 4, 23, 3), "X_101": (3, 4, 23, 3)}


@dataclass
class Writer:
    """Adds tensors of given shapes: random, or without values on the meta device."""

    device: str = "cpu"
    seed: int = 0

    def __post_init__(self) -> None:
        self.state: dict[str, Tensor] = {}
        self._generator = torch.Generator().manual_seed(self.seed)

    def add(self, name: str, *shape: int) -> None:
        assert name not in self.state
        if self.device == "meta":
            self.state[name] = torch.empty(shape, device="meta")
        else:
            self.state[name] = torch.randn(shape, generator=self._generator) * 0.05

    def conv(self, name: str, out_channels: int, in_channels: int, kernel: int, *, bias: bool = True) -> None:
        self.add(f"{name}.weight", out_channels, in_channels, kernel, kernel)
        if bias:
            self.add(f"{name}.bias", out_channels)

    def linear(self, name: str, out_channels: int, in_channels: int) -> None:
        self.add(f"{name}.weight", out_channels, in_channels)
        self.add(f"{name}.bias", out_channels)

    def norm(self, name: str, channels: int, *, statistics: bool = True) -> None:
        for part in ("weight", "bias", *(("running_mean", "running_var") if statistics else ())):
            self.add(f"{name}.{part}", channels)
            if part in ("weight", "running_var") and self.device != "meta":
                self.state[f"{name}.{part}"] = self.state[f"{name}.{part}"].abs() + 0.5


def bottlenecks(
    blocks: Sequence[int], *, groups: int = 1, base: int = 64
) -> Iterator[tuple[int, int, list[tuple[int, int, int]], tuple[int, int] | None]]:
    """Stage, block, (out, in, kernel) of the three convolutions, (out, in) of the projection in first blocks."""
    before = 64
    for stage, number in enumerate(blocks):
        width, after = base * 2**stage, 256 * 2**stage
        for block in range(number):
            shapes = [(width, before, 1), (width, width // groups, 3), (after, width, 1)]
            yield stage, block, shapes, (after, before) if block == 0 else None
            before = after


def detectron2_state(
    network: str = "R_50",
    pyramid: str = "FPN",
    kind: str = "mask",
    *,
    num_classes: int = 80,
    device: str = "meta",
    new_baseline: bool = False,
    group_norm: bool = False,
    class_agnostic: bool = False,
) -> dict[str, Tensor]:
    """detectron2's GeneralizedRCNN (or ProposalNetwork).

    Args:
        network: R_50, R_101 or X_101 (32x8d); pyramid: C4, DC5 or FPN.
        kind: rpn, fast, faster, mask, keypoint.
        new_baseline: its LSJ models: norms in FPN and heads, two convolutions in the RPN, 4conv1fc.
        group_norm: the norms have no statistics.
    """
    to = Writer(device)
    body = "backbone.bottom_up." if pyramid == "FPN" else "backbone."
    to.conv(f"{body}stem.conv1", 64, 3, 7, bias=False)
    to.norm(f"{body}stem.conv1.norm", 64, statistics=not group_norm)
    groups, base = (32, 256) if network == "X_101" else (1, 64)
    for stage, block, convs, shortcut in bottlenecks(BLOCKS[network], groups=groups, base=base):
        in_heads = pyramid == "C4" and stage == 3
        if in_heads and kind == "rpn":
            continue
        here = f"{'roi_heads.' if in_heads else body}res{stage + 2}.{block}."
        for i, (after, before, kernel) in enumerate(convs, start=1):
            to.conv(f"{here}conv{i}", after, before, kernel, bias=False)
            to.norm(f"{here}conv{i}.norm", after, statistics=not group_norm)
        if shortcut is not None:
            to.conv(f"{here}shortcut", *shortcut, 1, bias=False)
            to.norm(f"{here}shortcut.norm", shortcut[0], statistics=not group_norm)
    width = {"FPN": 256, "C4": 1024, "DC5": 2048}[pyramid]
    if pyramid == "FPN":
        for level in (2, 3, 4, 5):
            for name, before, kernel in (("lateral", 64 * 2**level, 1), ("output", 256, 3)):
                to.conv(f"backbone.fpn_{name}{level}", 256, before, kernel, bias=not new_baseline)
                if new_baseline:
                    to.norm(f"backbone.fpn_{name}{level}.norm", 256)
    if kind != "fast":
        head = "proposal_generator.rpn_head."
        anchors = 3 if pyramid == "FPN" else 15
        for name in ("conv.conv0", "conv.conv1") if new_baseline else ("conv",):
            to.conv(f"{head}{name}", width, width, 3)
        to.conv(f"{head}objectness_logits", anchors, width, 1)
        to.conv(f"{head}anchor_deltas", 4 * anchors, width, 1)
    if kind != "rpn":
        _detectron2_heads(to, pyramid, kind, width, num_classes, new_baseline, class_agnostic)
    return to.state


def _detectron2_heads(
    to: Writer, pyramid: str, kind: str, width: int, num_classes: int, new_baseline: bool, class_agnostic: bool
) -> None:
    heads = "roi_heads."
    if pyramid == "C4":
        features = 2048
    elif new_baseline:
        for i in range(1, 5):
            to.conv(f"{heads}box_head.conv{i}", 256, 256, 3, bias=False)
            to.norm(f"{heads}box_head.conv{i}.norm", 256)
        to.linear(f"{heads}box_head.fc1", 1024, 256 * 49)
        features = 1024
    else:
        to.linear(f"{heads}box_head.fc1", 1024, width * 49)
        to.linear(f"{heads}box_head.fc2", 1024, 1024)
        features = 1024
    to.linear(f"{heads}box_predictor.cls_score", num_classes + 1, features)
    to.linear(f"{heads}box_predictor.bbox_pred", 4 if class_agnostic else 4 * num_classes, features)
    if kind == "mask":
        before = 2048 if pyramid == "C4" else width
        for i in range(1, 1 if pyramid == "C4" else 5):
            to.conv(f"{heads}mask_head.mask_fcn{i}", 256, before, 3, bias=not new_baseline)
            if new_baseline:
                to.norm(f"{heads}mask_head.mask_fcn{i}.norm", 256)
            before = 256
        to.add(f"{heads}mask_head.deconv.weight", before, 256, 2, 2)
        to.add(f"{heads}mask_head.deconv.bias", 256)
        to.conv(f"{heads}mask_head.predictor", 1 if class_agnostic else num_classes, 256, 1)
    if kind == "keypoint":
        before = width
        for i in range(1, 9):
            to.conv(f"{heads}keypoint_head.conv_fcn{i}", 512, before, 3)
            before = 512
        to.add(f"{heads}keypoint_head.score_lowres.weight", 512, 17, 4, 4)
        to.add(f"{heads}keypoint_head.score_lowres.bias", 17)


def detectron2_retinanet_state(
    network: str = "R_50", *, num_classes: int = 80, device: str = "meta"
) -> dict[str, Tensor]:
    """detectron2's RetinaNet: FPN from res3 on, P6 and P7 in its top block, subnets whose ReLUs are counted."""
    whole = detectron2_state(network, "FPN", "rpn", device=device)
    parts = (
        "backbone.bottom_up.",
        *(f"backbone.fpn_{part}{level}." for part in ("lateral", "output") for level in "345"),
    )
    to = Writer(device)
    to.state = {key: value for key, value in whole.items() if key.startswith(parts)}
    to.conv("backbone.top_block.p6", 256, 2048, 3)
    to.conv("backbone.top_block.p7", 256, 256, 3)
    for name in ("cls_subnet", "bbox_subnet"):
        for i in (0, 2, 4, 6):
            to.conv(f"head.{name}.{i}", 256, 256, 3)
    to.conv("head.cls_score", 9 * num_classes, 256, 3)
    to.conv("head.bbox_pred", 9 * 4, 256, 3)
    return to.state


def mmdetection_state(
    network: str = "R_50", kind: str = "mask", *, num_classes: int = 80, device: str = "meta"
) -> dict[str, Tensor]:
    """mmdetection's MaskRCNN or FasterRCNN with FPN, as saved by its version 3; its norms count their batches."""
    to = Writer(device)
    to.conv("backbone.conv1", 64, 3, 7, bias=False)
    to.norm("backbone.bn1", 64)
    for stage, block, convs, shortcut in bottlenecks(BLOCKS[network]):
        here = f"backbone.layer{stage + 1}.{block}."
        for i, (after, before, kernel) in enumerate(convs, start=1):
            to.conv(f"{here}conv{i}", after, before, kernel, bias=False)
            to.norm(f"{here}bn{i}", after)
        if shortcut is not None:
            to.conv(f"{here}downsample.0", *shortcut, 1, bias=False)
            to.norm(f"{here}downsample.1", shortcut[0])
    for i in range(4):
        to.conv(f"neck.lateral_convs.{i}.conv", 256, 256 * 2**i, 1)
        to.conv(f"neck.fpn_convs.{i}.conv", 256, 256, 3)
    to.conv("rpn_head.rpn_conv", 256, 256, 3)
    to.conv("rpn_head.rpn_cls", 3, 256, 1)
    to.conv("rpn_head.rpn_reg", 12, 256, 1)
    to.linear("roi_head.bbox_head.shared_fcs.0", 1024, 256 * 49)
    to.linear("roi_head.bbox_head.shared_fcs.1", 1024, 1024)
    to.linear("roi_head.bbox_head.fc_cls", num_classes + 1, 1024)
    to.linear("roi_head.bbox_head.fc_reg", 4 * num_classes, 1024)
    if kind == "mask":
        for i in range(4):
            to.conv(f"roi_head.mask_head.convs.{i}.conv", 256, 256, 3)
        to.add("roi_head.mask_head.upsample.weight", 256, 256, 2, 2)
        to.add("roi_head.mask_head.upsample.bias", 256)
        to.conv("roi_head.mask_head.conv_logits", num_classes, 256, 1)
    norms = [name.removesuffix("running_var") for name in to.state if name.endswith(".running_var")]
    return to.state | {f"{norm}num_batches_tracked": torch.zeros((), dtype=torch.int64) for norm in norms}
