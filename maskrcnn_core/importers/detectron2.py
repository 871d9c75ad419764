"""detectron2's checkpoints in our names and conventions, so that they give detectron2's own numbers.

What its files do not tell is taken from its model zoo: ResNet-50 and 101 descend from Caffe's (MSRA) weights, with the
stride in the first 1x1 convolution and pixels BGR 0 .. 255 minus a mean; ResNeXt-101 has its stride in the 3x3 and
divides by a standard deviation as well.
"""

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from maskrcnn_core.config.dense import DenseConfig
from maskrcnn_core.config.dense_anchors import AnchorConfig
from maskrcnn_core.config.heads import BoxHeadConfig, KeypointHeadConfig, MaskHeadConfig
from maskrcnn_core.config.image import InputConfig
from maskrcnn_core.config.model import Category, ModelConfig
from maskrcnn_core.config.pyramid import PyramidConfig
from maskrcnn_core.config.regions import RegionsConfig
from maskrcnn_core.config.trunk import BackboneConfig
from maskrcnn_core.importers.architecture import Architecture, read_architecture
from maskrcnn_core.importers.config_names import SourceConfig, check_source_config, likely_name
from maskrcnn_core.importers.finish import Checkpoint, finish_import
from maskrcnn_core.importers.key_names import KeyNames, Numbered
from maskrcnn_core.importers.translation import (
    refuse_other_norms,
    start_translation,
    translate_heads,
    translate_pyramid,
    translate_resnet,
    translate_rpn,
)

PIXEL_MEAN = (103.530, 116.280, 123.675)
PIXEL_STD_CAFFE = (1.0, 1.0, 1.0)
PIXEL_STD_RESNEXT = (57.375, 57.120, 58.395)
NORM_EPS = 1e-5
_ANCHOR_SIZES = (32.0, 64.0, 128.0, 256.0, 512.0)
# Its rule is "longer than 0", where ours is "at least".
_MIN_SIZE = 1e-6

NAMES = KeyNames(
    framework="detectron2",
    stem="backbone.bottom_up.stem.conv1",
    stem_norm="backbone.bottom_up.stem.conv1.norm",
    stages=("backbone.bottom_up.res2", "backbone.bottom_up.res3", "backbone.bottom_up.res4", "backbone.bottom_up.res5"),
    block_conv=Numbered("conv", start=1),
    block_norm=Numbered("conv", ".norm", start=1),
    shortcut="shortcut",
    shortcut_norm="shortcut.norm",
    conv="",
    norm=".norm",
    laterals=Numbered("backbone.fpn_lateral", start=2),
    outputs=Numbered("backbone.fpn_output", start=2),
    rpn_conv="proposal_generator.rpn_head.conv",
    rpn_convs=Numbered("proposal_generator.rpn_head.conv.conv"),
    objectness="proposal_generator.rpn_head.objectness_logits",
    anchor_deltas="proposal_generator.rpn_head.anchor_deltas",
    box_convs=Numbered("roi_heads.box_head.conv", start=1),
    box_layers=Numbered("roi_heads.box_head.fc", start=1),
    classes="roi_heads.box_predictor.cls_score",
    box_deltas="roi_heads.box_predictor.bbox_pred",
    mask_convs=Numbered("roi_heads.mask_head.mask_fcn", start=1),
    mask_deconv="roi_heads.mask_head.deconv",
    mask_predictor="roi_heads.mask_head.predictor",
    keypoint_convs=Numbered("roi_heads.keypoint_head.conv_fcn", start=1),
    keypoint_deconv="roi_heads.keypoint_head.score_lowres",
    # Older files keep the normalisation and the anchors beside the weights.
    ignored=r"pixel_(mean|std)|(proposal_generator\.)?anchor_generator\..*|.*\.num_batches_tracked",
)
"""detectron2's names; its RetinaNet has trunk and pyramid in common with the others."""
# Without a feature pyramid the ResNet is the backbone itself, and with C4 its last stage belongs to the regions.
_NAMES_SINGLE_MAP = replace(
    NAMES,
    stem="backbone.stem.conv1",
    stem_norm="backbone.stem.conv1.norm",
    stages=("backbone.res2", "backbone.res3", "backbone.res4", "backbone.res5"),
)
_NAMES_C4 = replace(_NAMES_SINGLE_MAP, stages=(*_NAMES_SINGLE_MAP.stages[:3], "roi_heads.res5"))


def is_detectron2(state: Mapping[str, Tensor]) -> bool:
    """Whether the keys are those of detectron2's R-CNN models with a ResNet."""
    if any(key.startswith("head.") for key in state):
        return False  # RetinaNet
    return any(names.stem + ".weight" in state for names in (NAMES, _NAMES_SINGLE_MAP)) or any(
        key.startswith(("proposal_generator.rpn_head.", "backbone.fpn_lateral")) for key in state
    )


def import_detectron2(
    state: Mapping[str, Tensor],
    *,
    norm_eps: float | None = None,
    categories: tuple[Category, ...] | None = None,
    source_config: SourceConfig | None = None,
) -> Checkpoint:
    """Translate a Faster, Mask or Keypoint R-CNN, a Fast R-CNN without RPN or an RPN alone, with C4, DC5 or FPN.

    C4 and DC5 are told apart by where the keys have res5: in the heads or in the backbone.

    Args:
        state: detectron2's state dict, from its model zoo's .pkl or a .pth of its training.
        norm_eps: epsilon of its batch norms; None = detectron2's 1e-5.
        categories: classes in the order of its labels; by default COCO's where there are 80, person where it has
            keypoints and one class, else numbered names.
        source_config: detectron2's configuration, for what the keys do not tell.

    Returns:
        Configuration with detectron2's conventions, and our state dict.

    Raises:
        CheckpointError: keys are missing or left over, norms are group norms, or the name does not fit the keys.
    """
    to = start_translation(state, NAMES)
    names = _names(to.left)
    form = read_architecture(to.left, names)
    check_source_config(source_config, "detectron2", form)
    refuse_other_norms(to.left, names, form)
    norm_eps = NORM_EPS if norm_eps is None else norm_eps
    config = detectron2_conventions(form)
    config = with_stored_pixels(config, state)
    if source_config is not None:
        config = _as_named(config, source_config)
    translate_resnet(to, names, form, norm_eps)
    translate_pyramid(to, names, form, norm_eps)
    translate_rpn(to, names, form)
    translate_heads(
        to, names, form, norm_eps=norm_eps, box_resolution=config.regions.box_resolution, background_first=False
    )
    hint = f"The keys look like {likely_name('detectron2', form)}: is it that model, and the file whole?"
    return finish_import(to, config, form, categories, hint)


def _names(state: Mapping[str, Tensor]) -> KeyNames:
    if any(key.startswith(("backbone.bottom_up.", "backbone.fpn_")) for key in state):
        return NAMES
    if any(key.startswith(f"{_NAMES_SINGLE_MAP.stages[3]}.") for key in state):
        return _NAMES_SINGLE_MAP
    return _NAMES_C4


def detectron2_conventions(form: Architecture) -> ModelConfig:
    """Our defaults with the settings in which detectron2's models differ from them (its config/defaults.py and the
    Base-RCNN files of its configurations)."""
    resnext = form.network.startswith("resnext")
    pyramid = form.pyramid == "fpn"
    return ModelConfig(
        input=InputConfig(
            mean=PIXEL_MEAN,
            std=PIXEL_STD_RESNEXT if resnext else PIXEL_STD_CAFFE,
            channels="bgr",
            scale="byte",
            resize="antialias",
            divisor=32 if pyramid else 1,
        ),
        backbone=BackboneConfig(name=form.network, pretrained=False, frozen_stages=2, stride_in_1x1=not resnext),
        pyramid=PyramidConfig(kind=form.pyramid),
        dense=DenseConfig(
            anchors=AnchorConfig(sizes=_ANCHOR_SIZES, every_level=not pyramid),
            pre_nms_train=2000 if pyramid else 12_000,
            pre_nms_test=1000 if pyramid else 6000 if form.box else 12_000,
            post_nms_train=1500 if form.keypoint else 1000 if pyramid else 2000,
            post_nms_test=1000 if form.box else 2000,
            min_size=_MIN_SIZE,
            smooth_l1_beta=0.0,
        ),
        regions=RegionsConfig(box_resolution=14 if form.pyramid == "c4" else 7, sampling_ratio=0, aligned=True),
        box_head=BoxHeadConfig(smooth_l1_beta=0.5 if form.keypoint else 0.0, min_size=_MIN_SIZE),
        mask_head=MaskHeadConfig(paste="exact", soft_targets=False),
        keypoint_head=KeypointHeadConfig(decode="exact"),
    )


def with_stored_pixels(config: ModelConfig, state: Mapping[str, Tensor]) -> ModelConfig:
    """The normalisation that older files carry themselves; a divisor of 1 is that of Caffe's weights."""
    mean, std = state.get("pixel_mean"), state.get("pixel_std")
    if mean is None or std is None or mean.numel() != 3 or std.numel() != 3:
        return config
    caffe = bool((std == 1).all())
    return replace(
        config,
        input=replace(config.input, mean=_triple(mean), std=_triple(std)),
        backbone=replace(config.backbone, stride_in_1x1=caffe),
    )


def _triple(values: Tensor) -> tuple[float, float, float]:
    first, second, third = (round(float(value), 4) for value in values.flatten())
    return first, second, third


def _as_named(config: ModelConfig, said: SourceConfig) -> ModelConfig:
    """What a configuration changes that leaves no trace in the keys."""
    if said.folder == "detectron1-comparisons":
        beta = 0.5 if said.kind == "keypoint" else 1.0
        config = replace(
            config,
            regions=replace(config.regions, aligned=False, sampling_ratio=2),
            dense=replace(config.dense, smooth_l1_beta=1.0 / 9.0),
            box_head=replace(config.box_head, smooth_l1_beta=beta),
        )
    if said.folder == "cityscapes":
        config = replace(config, input=replace(config.input, short_side=1024, long_side=2048))
    if said.folder.startswith("lvis"):
        config = replace(config, box_head=replace(config.box_head, min_score=1e-4, max_detections=300))
    if "giou" in said.words:
        config = replace(
            config,
            dense=replace(config.dense, box_loss="giou"),
            box_head=replace(config.box_head, box_loss="giou"),
        )
    return config
