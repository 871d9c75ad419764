"""The configuration names of other frameworks, and what they say about a checkpoint that its keys do not.

A file of weights tells its own architecture. It does not tell how its pixels are normalised, where its ResNet has its
strides, or at which size it was meant to run. Each framework's usual answer is taken unless a name says otherwise.
"""

import re
from dataclasses import dataclass
from typing import Literal

from maskrcnn_core.errors import CheckpointError
from maskrcnn_core.importers.architecture import Architecture, Kind

Framework = Literal["torchvision", "detectron2", "mmdetection"]

TORCHVISION_MODELS: dict[str, tuple[str, Kind, bool]] = {
    "maskrcnn_resnet50_fpn": ("resnet50", "mask", False),
    "maskrcnn_resnet50_fpn_v2": ("resnet50", "mask", True),
    "keypointrcnn_resnet50_fpn": ("resnet50", "keypoint", False),
    "fasterrcnn_resnet50_fpn": ("resnet50", "faster", False),
    "fasterrcnn_resnet50_fpn_v2": ("resnet50", "faster", True),
    "fasterrcnn_mobilenet_v3_large_fpn": ("mobilenet_v3_large_torchvision", "faster", False),
    "fasterrcnn_mobilenet_v3_large_320_fpn": ("mobilenet_v3_large_torchvision", "faster", False),
    "retinanet_resnet50_fpn": ("resnet50", "retinanet", False),
    "retinanet_resnet50_fpn_v2": ("resnet50", "retinanet", False),
    "fcos_resnet50_fpn": ("resnet50", "fcos", False),
    "ssd300_vgg16": ("vgg16_reduced", "ssd", False),
    "ssdlite320_mobilenet_v3_large": ("mobilenet_v3_large_reduced", "ssdlite", False),
}
"""Trunk, kind, and whether norms follow the pyramid's convolutions."""

_DETECTRON2 = re.compile(
    r"(?:(?P<folder>[\w.-]+)/)?(?P<scratch>scratch_)?(?:(?P<kind>rpn|retinanet|(?:fast|faster|mask|keypoint)_rcnn)_)"
    r"(?P<trunk>R_50|R_101|X_101_32x8d)_(?P<pyramid>C4|DC5|FPN)(?P<rest>(?:_[\w-]+)?)",
    re.IGNORECASE,
)
_DETECTRON2_TRUNKS = {"R_50": "resnet50", "R_101": "resnet101", "X_101_32X8D": "resnext101_32x8d"}
# What may follow: schedule, then a word about training or losses.
_DETECTRON2_REST = re.compile(
    r"(_(\d+x|\d+ep|noaug|syncbn|giou|cls_agnostic|LSJ|inference_acc_test|instant_test|training_acc_test))*",
    re.IGNORECASE,
)
_MMDETECTION = re.compile(
    r"(?P<kind>rpn|fast-rcnn|faster-rcnn|mask-rcnn)_(?P<trunk>r18|r50|r101|x101-32x8d|x101-64x4d)(?P<caffe>-caffe)?"
    r"[-_](?P<pyramid>fpn|c4|dc5)(?:_(?P<rest>.*))?"
)
_MMDETECTION_TRUNKS = {
    "r18": "resnet18",
    "r50": "resnet50",
    "r101": "resnet101",
    "x101-32x8d": "resnext101_32x8d",
    "x101-64x4d": "resnext101_64x4d",
}
_EXAMPLES = (
    "maskrcnn_resnet50_fpn (torchvision), COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x (detectron2), "
    "mask-rcnn_r50_fpn_1x_coco (mmdetection)"
)


@dataclass(frozen=True)
class SourceConfig:
    """What a configuration name says.

    Attributes:
        name: as the user gave it, without folder of configurations and file ending.
        framework: whose name it is.
        network, kind, pyramid: of the architecture, as in `Architecture`.
        pyramid_norm: norms follow the pyramid's convolutions; None = not said.
        folder: detectron2's group of configurations, in lower case.
        words: what follows the architecture in the name, in lower case.
        caffe: mmdetection's Caffe style: strides in the 1x1, BGR, no division.
    """

    name: str
    framework: Framework
    network: str
    kind: Kind
    pyramid: Literal["fpn", "c4", "dc5"]
    pyramid_norm: bool | None = None
    folder: str = ""
    words: tuple[str, ...] = ()
    caffe: bool = False


def parse_source_config(name: str) -> SourceConfig:
    """What a framework's configuration name says about its checkpoint.

    Args:
        name: torchvision's name of the model; detectron2's `GROUP/NAME` (its model zoo) or `NAME`; mmdetection's name,
            also in its older form with underscores. A path in front and .yaml or .py at the end do no harm.

    Raises:
        CheckpointError: no framework has such a name, or it names a system that is not supported.
    """
    plain = re.sub(r"\.(yaml|yml|py)$", "", name.strip())
    plain = re.sub(r"^.*(?:configs|model_zoo)/", "", plain)
    config = _torchvision(plain) or _mmdetection(plain) or _detectron2(plain)
    if config is None:
        raise CheckpointError(
            f"source_config: got {name!r}, expected the name of a Faster, Mask or Keypoint R-CNN, RetinaNet or "
            f"SSD configuration such as {_EXAMPLES}; cascades, deformable convolutions, group norm and panoptic models "
            "are not supported"
        )
    return config


def _torchvision(name: str) -> SourceConfig | None:
    if name not in TORCHVISION_MODELS:
        return None
    network, kind, norm = TORCHVISION_MODELS[name]
    return SourceConfig(name, "torchvision", network, kind, "fpn", norm)


def _detectron2(name: str) -> SourceConfig | None:
    match = _DETECTRON2.fullmatch(name)
    if match is None or _DETECTRON2_REST.fullmatch(match["rest"] or "") is None:
        return None
    if match["kind"].lower() == "retinanet" and match["pyramid"].lower() != "fpn":
        return None
    kinds: dict[str, Kind] = {
        "rpn": "rpn",
        "retinanet": "retinanet",
        "fast_rcnn": "fast",
        "faster_rcnn": "faster",
        "mask_rcnn": "mask",
        "keypoint_rcnn": "keypoint",
    }
    pyramids: dict[str, Literal["fpn", "c4", "dc5"]] = {"c4": "c4", "dc5": "dc5", "fpn": "fpn"}
    words = (match["rest"] or "").lower().replace("cls_agnostic", "cls-agnostic").split("_")
    return SourceConfig(
        name,
        "detectron2",
        _DETECTRON2_TRUNKS[match["trunk"].upper()],
        kinds[match["kind"].lower()],
        pyramids[match["pyramid"].lower()],
        folder=(match["folder"] or "").lower(),
        words=tuple(word for word in words if word),
    )


def _mmdetection(name: str) -> SourceConfig | None:
    last = name.rpartition("/")[2]
    modern = re.sub(r"^(fast|faster|mask)_rcnn", r"\1-rcnn", last)
    modern = re.sub(r"_(caffe|32x8d|64x4d)(?=[_-])", r"-\1", modern)
    match = _MMDETECTION.fullmatch(modern)
    if match is None or match["pyramid"] != "fpn" or re.search(r"dconv|mdconv|gcb|gn|syncbn-gcb", match["rest"] or ""):
        return None
    kinds: dict[str, Kind] = {"rpn": "rpn", "fast-rcnn": "fast", "faster-rcnn": "faster", "mask-rcnn": "mask"}
    return SourceConfig(
        name,
        "mmdetection",
        _MMDETECTION_TRUNKS[match["trunk"]],
        kinds[match["kind"]],
        "fpn",
        words=tuple(word for word in (match["rest"] or "").split("_") if word),
        caffe=match["caffe"] is not None,
    )


def check_source_config(said: SourceConfig | None, framework: Framework, architecture: Architecture) -> None:
    """Make sure that a configuration's name and a file's keys speak of the same model.

    Raises:
        CheckpointError: where they differ.
    """
    if said is None:
        return
    differences = [
        f"{what} {there} (the keys: {here})"
        for what, there, here in (
            ("framework", said.framework, framework),
            ("network", said.network, architecture.network),
            ("pyramid", said.pyramid, architecture.pyramid),
            ("kind", said.kind, architecture.kind),
            ("norms in the pyramid", said.pyramid_norm, architecture.pyramid_norm),
        )
        if there is not None and there != here
    ]
    if differences:
        raise CheckpointError(
            f"source_config {said.name} does not fit: it says {', '.join(differences)}. The keys look like "
            f"{likely_name(framework, architecture)}; give the name of the configuration that the file was made with, "
            "or none"
        )


def likely_name(framework: Framework, form: Architecture) -> str:
    """The configuration name that an architecture most likely has, for messages."""
    if framework == "torchvision":
        for name, (network, kind, norm) in TORCHVISION_MODELS.items():
            if (network, kind, norm) == (form.network, form.kind, form.pyramid_norm):
                return f"torchvision's {name}"
        return f"torchvision's {form.kind}{'' if form.one_stage else ' R-CNN'} with {form.network}"
    known = {"detectron2": _DETECTRON2_TRUNKS, "mmdetection": _MMDETECTION_TRUNKS}[framework]
    trunk = next((short for short, network in known.items() if network == form.network), form.network)
    if framework == "mmdetection":
        system = "rpn" if form.kind == "rpn" else f"{form.kind}-rcnn"
        return f"mmdetection's {system}_{trunk}_{form.pyramid}_1x_coco"
    group = {"mask": "COCO-InstanceSegmentation", "keypoint": "COCO-Keypoints"}.get(form.kind, "COCO-Detection")
    system = form.kind if form.kind in ("rpn", "retinanet") else f"{form.kind}_rcnn"
    schedule = "1x" if form.kind in ("rpn", "fast") else "3x"
    return f"detectron2's {group}/{system}_{trunk.replace('X8D', 'x8d')}_{form.pyramid.upper()}_{schedule}"
