"""The typed configuration of reading another framework's checkpoint."""

from dataclasses import dataclass

from maskrcnn_core.config.checks import require_between, require_typed


@dataclass(frozen=True)
class ConvertRun:
    """Turn another framework's checkpoint file into a checkpoint folder with that framework's conventions."""

    source: str
    """.pth or .pkl file of torchvision (Mask, Keypoint and Faster R-CNN, RetinaNet, FCOS, SSD), detectron2 (C4, DC5,
    FPN; masks, keypoints, boxes, RPN; RetinaNet) or mmdetection (Mask and Faster R-CNN with FPN); .weights file of
    Darknet (YOLOv2, YOLOv1); .caffemodel file of Caffe (SSD); .pb file of TensorFlow (SSD MobileNetV2); .json manifest
    of TensorFlow.js (face-api's face detectors)."""
    output: str
    """Checkpoint folder to write."""
    annotations: str | None = None
    """COCO json whose categories, in order of id, name labels 1, 2, ...; null = COCO's where there are 91 outputs."""
    source_config: str | None = None
    """The source framework's own name of the model's configuration, where the file alone can't tell
    (COCO-InstanceSegmentation/mask_rcnn_R_50_C4_3x, COCO-Keypoints/keypoint_rcnn_R_50_FPN_3x, ...); of Darknet's
    weights the .cfg file, of Caffe's the .prototxt file, where it doesn't lie beside them under the same name."""
    norm_eps: float = 0.0
    """Epsilon of the source's batch norms; 0 = the source framework's own (torchvision's released weights: none)."""

    def __post_init__(self) -> None:
        require_typed("", self)
        require_between("norm_eps", self.norm_eps, 0, 1)
