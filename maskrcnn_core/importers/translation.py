"""A foreign state dict -> ours: new names, batch norms as scale and shift, classes, anchors and columns in our order.

What is missing or left over is collected and said at once. The order of things in ours: classes 0 .. K-1 with the
background last; anchors at a position by size, then by ratio; the columns of the box head's first fully connected
layer by row, column, channel.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from maskrcnn_core.errors import CheckpointError
from maskrcnn_core.importers.architecture import RESNETS, Architecture
from maskrcnn_core.importers.key_names import KeyNames, Numbered
from maskrcnn_core.printable import listed
from maskrcnn_core.weights.soundness import check_finite, check_floating

Change = Callable[[Tensor], Tensor]

_MAX_LISTED, _MAX_LENGTH = 8, 200
_NORM_PARTS = ("weight", "bias", "running_mean", "running_var")


@dataclass
class Translation:
    """The state of a translation.

    Attributes:
        framework: for messages.
        left: source keys that are not yet translated.
        result: our state dict as far as it is made.
        origins: for each of our keys the source key.
        missing, misshapen: what was looked for in vain; what could not be brought into our order.
    """

    framework: str
    left: dict[str, Tensor]
    result: dict[str, Tensor] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    misshapen: list[str] = field(default_factory=list)

    def take(self, keys: Sequence[str]) -> list[Tensor] | None:
        """The tensors of these keys; None, and a note, where one is missing."""
        absent = [key for key in keys if key not in self.left]
        self.missing += absent
        tensors = [self.left.pop(key) for key in keys if key in self.left]
        return None if absent else tensors

    def part(self, theirs: str, ours: str, change: Change | None = None) -> None:
        """Weight and bias of a layer, both changed in the same way."""
        self.tensor(f"{theirs}.weight", f"{ours}.weight", change)
        self.tensor(f"{theirs}.bias", f"{ours}.bias", change)

    def tensor(self, theirs: str, ours: str, change: Change | None = None) -> None:
        """One tensor, changed."""
        tensors = self.take([theirs])
        if tensors is None:
            return
        self.origins[ours] = theirs
        try:
            self.result[ours] = tensors[0] if change is None else change(tensors[0]).contiguous()
        except (RuntimeError, ValueError, IndexError):
            self.misshapen.append(f"{theirs} {list(tensors[0].shape)}")

    def affine(self, conv: str, norm: str, ours: str, eps: float) -> None:
        """A convolution without bias and its batch norm as `weight`, `scale` and `shift`."""
        tensors = self.take([f"{conv}.weight", *(f"{norm}.{part}" for part in _NORM_PARTS)])
        if tensors is None:
            return
        weight, gamma, beta, mean, variance = tensors
        if any(statistic.shape != weight.shape[:1] for statistic in tensors[1:]):
            self.misshapen.append(f"{norm}.* {list(gamma.shape)} behind {conv}.weight {list(weight.shape)}")
            return
        scale = gamma * (variance + eps).rsqrt()
        self.result |= {f"{ours}.weight": weight, f"{ours}.scale": scale, f"{ours}.shift": beta - mean * scale}
        self.origins |= {f"{ours}.weight": f"{conv}.weight", f"{ours}.scale": norm, f"{ours}.shift": norm}

    def folded(self, conv: str, norm: str, ours: str, eps: float) -> None:
        """A convolution without bias and its batch norm as one convolution with bias, which gives the same outputs."""
        self.affine(conv, norm, ours, eps)
        scale, shift = self.result.pop(f"{ours}.scale", None), self.result.pop(f"{ours}.shift", None)
        if scale is not None and shift is not None:
            self.result[f"{ours}.weight"] = self.result[f"{ours}.weight"] * scale[:, None, None, None]
            self.result[f"{ours}.bias"] = shift
            self.origins[f"{ours}.bias"] = self.origins[f"{ours}.shift"]

    def finish(self, hint: str) -> None:
        """Make sure that everything was there and nothing is left.

        Raises:
            CheckpointError: with the names of what is missing, left over or misshapen, and the hint.
        """
        faults = []
        if self.missing:
            faults.append(f"{len(self.missing)} keys are missing ({listed(self.missing)})")
        if self.left:
            faults.append(f"{len(self.left)} keys are left over ({listed(sorted(self.left))})")
        if self.misshapen:
            faults.append(f"{len(self.misshapen)} have a shape that does not fit ({listed(self.misshapen)})")
        if faults:
            raise CheckpointError(f"{self.framework} checkpoint: {'; '.join(faults)}. {hint}")


def start_translation(state: Mapping[str, Tensor], names: KeyNames) -> Translation:
    """A translation of all keys but those that hold no weights.

    Raises:
        CheckpointError: weights are no floating-point numbers, or not finite (in float32).
    """
    return start_weights(names.framework, state, names.ignored)


def start_weights(framework: str, state: Mapping[str, Tensor], ignored: str) -> Translation:
    """`start_translation` of a family that has no table of names; `ignored` matches keys that hold no weights.

    Raises:
        CheckpointError: as `start_translation`.
    """
    no_weights, where = re.compile(ignored), f"{framework} checkpoint"
    weights = {key: value for key, value in state.items() if not no_weights.fullmatch(key)}
    check_floating(weights, where)
    weights = {key: value.float() for key, value in weights.items()}
    check_finite(weights, where)
    return Translation(framework, weights)


def translate_resnet(to: Translation, names: KeyNames, form: Architecture, norm_eps: float) -> None:
    """The trunk and, with C4, the last stage, which works on regions."""
    to.affine(names.stem, names.stem_norm, "trunk.stem.0", norm_eps)
    resnet = RESNETS[form.network]
    for stage, (theirs, num_blocks) in enumerate(zip(names.stages, resnet.blocks, strict=True)):
        ours = f"trunk.stages.{stage}"
        if stage == 3 and form.pyramid == "c4":
            if not form.box:
                continue  # an RPN alone has no regions to work on
            ours = "regions.trunk"
        for block in range(num_blocks):
            here, there = f"{theirs}.{block}.", f"{ours}.{block}."
            for i in range(3 if resnet.bottleneck else 2):
                to.affine(here + names.block_conv(i), here + names.block_norm(i), f"{there}conv{i + 1}", norm_eps)
            if block == 0 and (resnet.bottleneck or stage > 0):
                to.affine(here + names.shortcut, here + names.shortcut_norm, f"{there}downsample.0", norm_eps)


def translate_pyramid(to: Translation, names: KeyNames, form: Architecture, norm_eps: float) -> None:
    """Lateral and output convolutions of a feature pyramid network, if it is one."""
    for i in range(form.levels):
        _convs(to, names, names.laterals, f"pyramid.laterals.{i}", i, norm=form.pyramid_norm, eps=norm_eps)
        _convs(to, names, names.outputs, f"pyramid.outputs.{i}", i, norm=form.pyramid_norm, eps=norm_eps)


def translate_rpn(to: Translation, names: KeyNames, form: Architecture, *, ratio_major_sizes: int = 1) -> None:
    """The region proposal network.

    Args:
        ratio_major_sizes: sizes at each position where the source orders anchors by ratio first.
    """
    if form.rpn_convs == 0:
        return

    def by_size(per_anchor: int) -> Change | None:
        if ratio_major_sizes == 1:
            return None
        return lambda x: x.unflatten(0, (-1, ratio_major_sizes, per_anchor)).transpose(0, 1).flatten(0, 2)

    for i, conv in enumerate(names.rpn_conv_names(form.rpn_convs)):
        to.part(conv + (names.conv if conv != names.rpn_conv else ""), f"dense.head.convs.{i}")
    to.part(names.objectness, "dense.head.logits", by_size(1))
    to.part(names.anchor_deltas, "dense.head.deltas", by_size(4))


def translate_tower(to: Translation, convs: Numbered, norms: Numbered | None, ours: str) -> None:
    """A tower of 3x3 convolutions of a one-stage detector, with or without group norms behind them.

    Args:
        convs, norms: the framework's names.
        ours: name of our tower.
    """
    for i in range(convs.count(to.left)):
        if norms is None:
            to.part(convs(i), f"{ours}.{i}")
            continue
        to.tensor(f"{convs(i)}.weight", f"{ours}.{i}.0.weight")
        if f"{convs(i)}.bias" in to.left:
            to.tensor(f"{convs(i)}.bias", f"{ours}.{i}.0.bias")
        to.part(norms(i), f"{ours}.{i}.1")


def translate_heads(
    to: Translation,
    names: KeyNames,
    form: Architecture,
    *,
    norm_eps: float,
    box_resolution: int,
    background_first: bool,
) -> None:
    """Box, mask and keypoint head, those that there are.

    Args:
        box_resolution: side of the features that the box head flattens.
        background_first: row 0 of classes, boxes and masks is the background; else it is the last class, without
            box and mask.
    """
    if form.box:
        for i in range(form.box_convs):
            _convs(to, names, names.box_convs, f"regions.box.head.convs.{i}", i, norm=form.box_norm, eps=norm_eps)
        for i in range(form.box_layers):
            theirs, ours = names.box_layers(i), f"regions.box.head.layers.{i}"
            columns = (lambda x: _channels_last_columns(x, box_resolution)) if i == 0 else None
            to.tensor(f"{theirs}.weight", f"{ours}.weight", columns)
            to.tensor(f"{theirs}.bias", f"{ours}.bias")
        to.part(names.classes, "regions.box.head.classes", (lambda x: x.roll(-1, 0)) if background_first else None)
        to.part(names.box_deltas, "regions.box.head.deltas", (lambda x: x[4:]) if background_first else None)
    if form.mask:
        for i in range(form.mask_convs):
            theirs = names.mask_convs(i)
            if form.mask_norm:
                to.folded(theirs + names.conv, theirs + names.norm, f"regions.mask.head.convs.{i}", norm_eps)
            else:
                to.part(theirs + names.conv, f"regions.mask.head.convs.{i}")
        to.part(names.mask_deconv, "regions.mask.head.deconv")
        to.part(names.mask_predictor, "regions.mask.head.predictor", (lambda x: x[1:]) if background_first else None)
    if form.keypoint:
        assert names.keypoint_convs is not None
        for i in range(form.keypoint_convs):
            to.part(names.keypoint_convs(i), f"regions.keypoints.head.convs.{i}")
        to.part(names.keypoint_deconv, "regions.keypoints.head.deconv")


def _convs(to: Translation, names: KeyNames, parts: Numbered, ours: str, i: int, *, norm: bool, eps: float) -> None:
    theirs = parts(i)
    if norm:
        to.affine(theirs + names.conv, theirs + names.norm, ours, eps)
    else:
        to.part(theirs + names.conv, ours)


def _channels_last_columns(weight: Tensor, resolution: int) -> Tensor:
    """Columns from (channel, row, column) to (row, column, channel) order."""
    columns: Tensor = weight.unflatten(1, (-1, resolution, resolution))
    return columns.permute(0, 2, 3, 1).flatten(1)


def refuse_other_norms(state: Mapping[str, Tensor], names: KeyNames, form: Architecture) -> None:
    """Norms with weights but without statistics are group norms, which a constant affine cannot stand for.

    Raises:
        CheckpointError: there are such norms.
    """
    norms = [names.stem_norm]
    for parts, present in (
        (names.laterals, form.pyramid_norm),
        (names.box_convs, form.box_norm),
        (names.mask_convs, form.mask_norm),
    ):
        if present:
            norms.append(parts(0) + names.norm)
    for norm in norms:
        if f"{norm}.weight" in state and f"{norm}.running_mean" not in state:
            raise CheckpointError(
                f"{names.framework} checkpoint: {norm} has weights but no running_mean, as a group norm; expected "
                "batch norms (FrozenBN, BN, SyncBN), which become constant affines. Models with group norm are not "
                "supported"
            )
