"""Configuration names of three frameworks: what they say, what they are checked against, what is refused."""

from dataclasses import replace

import pytest

from maskrcnn_core.errors import CheckpointError
from maskrcnn_core.importers.architecture import Architecture
from maskrcnn_core.importers.config_names import check_source_config, likely_name, parse_source_config

MASK_R50_FPN = Architecture(
    network="resnet50",
    pyramid="fpn",
    pyramid_norm=False,
    levels=4,
    rpn_convs=1,
    box=True,
    box_convs=0,
    box_norm=False,
    box_layers=2,
    mask=True,
    mask_convs=4,
    mask_norm=False,
    keypoint=False,
    keypoint_convs=0,
)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("maskrcnn_resnet50_fpn", ("torchvision", "resnet50", "mask", "fpn")),
        ("keypointrcnn_resnet50_fpn", ("torchvision", "resnet50", "keypoint", "fpn")),
        ("fasterrcnn_mobilenet_v3_large_fpn", ("torchvision", "mobilenet_v3_large_torchvision", "faster", "fpn")),
        ("COCO-InstanceSegmentation/mask_rcnn_R_50_C4_3x", ("detectron2", "resnet50", "mask", "c4")),
        ("COCO-InstanceSegmentation/mask_rcnn_R_101_DC5_3x.yaml", ("detectron2", "resnet101", "mask", "dc5")),
        ("COCO-Keypoints/keypoint_rcnn_R_50_FPN_3x", ("detectron2", "resnet50", "keypoint", "fpn")),
        ("keypoint_rcnn_X_101_32x8d_FPN_3x", ("detectron2", "resnext101_32x8d", "keypoint", "fpn")),
        ("detectron2/configs/COCO-Detection/rpn_R_50_FPN_1x.yaml", ("detectron2", "resnet50", "rpn", "fpn")),
        ("COCO-Detection/fast_rcnn_R_50_FPN_1x", ("detectron2", "resnet50", "fast", "fpn")),
        ("COCO-Detection/retinanet_R_101_FPN_3x", ("detectron2", "resnet101", "retinanet", "fpn")),
        ("retinanet_resnet50_fpn_v2", ("torchvision", "resnet50", "retinanet", "fpn")),
        ("fcos_resnet50_fpn", ("torchvision", "resnet50", "fcos", "fpn")),
        ("COCO-Detection/faster_rcnn_R_50_DC5_3x", ("detectron2", "resnet50", "faster", "dc5")),
        ("Cityscapes/mask_rcnn_R_50_FPN", ("detectron2", "resnet50", "mask", "fpn")),
        ("new_baselines/mask_rcnn_R_50_FPN_100ep_LSJ.py", ("detectron2", "resnet50", "mask", "fpn")),
        ("Misc/mask_rcnn_R_50_FPN_1x_cls_agnostic", ("detectron2", "resnet50", "mask", "fpn")),
        ("mask-rcnn_r50_fpn_1x_coco", ("mmdetection", "resnet50", "mask", "fpn")),
        ("mask_rcnn_r50_fpn_1x_coco", ("mmdetection", "resnet50", "mask", "fpn")),
        ("configs/mask_rcnn/mask-rcnn_r101_fpn_ms-poly-3x_coco.py", ("mmdetection", "resnet101", "mask", "fpn")),
        ("faster-rcnn_r50_fpn_1x_coco", ("mmdetection", "resnet50", "faster", "fpn")),
        ("mask-rcnn_x101-32x8d_fpn_1x_coco", ("mmdetection", "resnext101_32x8d", "mask", "fpn")),
    ],
)
def test_names_say_what_they_are_of(name: str, expected: tuple[str, ...]) -> None:
    said = parse_source_config(name)
    assert (said.framework, said.network, said.kind, said.pyramid) == expected


@pytest.mark.parametrize(
    "name",
    [
        "mask-rcnn_r50-caffe_fpn_1x_coco",
        "mask_rcnn_r50_caffe_fpn_mstrain-poly_3x_coco",
        "mask-rcnn_r101-caffe-fpn_1x_coco",
    ],
)
def test_caffe_style_is_in_the_name(name: str) -> None:
    assert parse_source_config(name).caffe
    assert not parse_source_config(name.replace("-caffe", "").replace("_caffe", "")).caffe


@pytest.mark.parametrize(
    "name",
    [
        "",
        "mask_rcnn",
        "maskrcnn_resnet50",
        "Misc/cascade_mask_rcnn_R_50_FPN_3x",
        "Misc/mask_rcnn_R_50_FPN_3x_gn",
        "Misc/mask_rcnn_R_50_FPN_3x_dconv_c3-c5",
        "COCO-Detection/retinanet_R_50_C4_3x",
        "retinanet_resnet50",
        "COCO-PanopticSegmentation/panoptic_fpn_R_50_3x",
        "COCO-InstanceSegmentation/mask_rcnn_regnetx_4gf_dds_fpn_1x",
        "mask-rcnn_r50-caffe-c4_1x_coco",
        "mask-rcnn_x101-32x4d_fpn_1x_coco",
    ],
)
def test_other_names_are_refused_with_examples(name: str) -> None:
    with pytest.raises(CheckpointError, match=r"source_config: got '.*expected the name of .*mask_rcnn_R_50_FPN_3x"):
        parse_source_config(name)


def test_a_name_that_fits_passes() -> None:
    check_source_config(None, "detectron2", MASK_R50_FPN)
    check_source_config(parse_source_config("mask_rcnn_R_50_FPN_3x"), "detectron2", MASK_R50_FPN)
    check_source_config(parse_source_config("maskrcnn_resnet50_fpn"), "torchvision", MASK_R50_FPN)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mask_rcnn_R_101_FPN_3x", r"network resnet101 \(the keys: resnet50\)"),
        ("mask_rcnn_R_50_C4_3x", r"pyramid c4 \(the keys: fpn\)"),
        ("faster_rcnn_R_50_FPN_3x", r"kind faster \(the keys: mask\)"),
        ("maskrcnn_resnet50_fpn_v2", r"framework torchvision \(the keys: detectron2\), norms in the pyramid True"),
    ],
)
def test_a_name_that_contradicts_the_keys(name: str, expected: str) -> None:
    with pytest.raises(CheckpointError, match=rf"does not fit: it says .*{expected}.*mask_rcnn_R_50_FPN_3x"):
        check_source_config(parse_source_config(name), "detectron2", MASK_R50_FPN)


def test_likely_names() -> None:
    assert likely_name("torchvision", MASK_R50_FPN) == "torchvision's maskrcnn_resnet50_fpn"
    assert likely_name("torchvision", replace(MASK_R50_FPN, network="resnet18")).endswith("mask R-CNN with resnet18")
    keypoints = replace(MASK_R50_FPN, mask=False, keypoint=True, network="resnext101_32x8d")
    assert likely_name("detectron2", keypoints) == "detectron2's COCO-Keypoints/keypoint_rcnn_X_101_32x8d_FPN_3x"
    rpn = replace(MASK_R50_FPN, mask=False, box=False, pyramid="c4")
    assert likely_name("detectron2", rpn) == "detectron2's COCO-Detection/rpn_R_50_C4_1x"
    assert likely_name("mmdetection", MASK_R50_FPN) == "mmdetection's mask-rcnn_r50_fpn_1x_coco"
