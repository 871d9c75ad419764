"""Another framework's checkpoint file -> our checkpoint folder."""

from pathlib import Path

from maskrcnn_core.config.model import Category, ModelConfig
from maskrcnn_core.errors import CheckpointError
from maskrcnn_core.importers.caffe_ssd import import_caffe_ssd
from maskrcnn_core.importers.config_names import SourceConfig, parse_source_config
from maskrcnn_core.importers.darknet import import_darknet
from maskrcnn_core.importers.detectron2 import import_detectron2, is_detectron2
from maskrcnn_core.importers.detectron2_one_stage import import_detectron2_one_stage, is_detectron2_one_stage
from maskrcnn_core.importers.face_api import (
    import_face_api_ssd,
    import_face_api_tiny,
    is_face_api_ssd,
    is_face_api_tiny,
)
from maskrcnn_core.importers.mmdetection import import_mmdetection, is_mmdetection
from maskrcnn_core.importers.tensorflow_ssd import import_tensorflow_ssd, is_tensorflow_ssd
from maskrcnn_core.importers.torchvision import import_torchvision, is_torchvision
from maskrcnn_core.importers.torchvision_one_stage import import_torchvision_one_stage, is_torchvision_one_stage
from maskrcnn_core.importers.torchvision_ssd import import_torchvision_ssd, is_torchvision_ssd
from maskrcnn_core.model.trunks.imagenet_weights import is_classifier
from maskrcnn_core.printable import listed
from maskrcnn_core.weights.checkpoint import save_checkpoint
from maskrcnn_core.weights.coco_categories import COCO_CATEGORIES
from maskrcnn_core.weights.source_files import SourceFile, read_source

# Endings of weights whose network another file describes, and of that one.
_DESCRIPTIONS = {".weights": ".cfg", ".caffemodel": ".prototxt"}
# Each family's keys are told from the others'; the order says nothing.
_FAMILIES = (
    (is_torchvision, import_torchvision),
    (is_torchvision_one_stage, import_torchvision_one_stage),
    (is_torchvision_ssd, import_torchvision_ssd),
    (is_tensorflow_ssd, import_tensorflow_ssd),
    (is_face_api_ssd, import_face_api_ssd),
    (is_face_api_tiny, import_face_api_tiny),
    (is_detectron2, import_detectron2),
    (is_detectron2_one_stage, import_detectron2_one_stage),
    (is_mmdetection, import_mmdetection),
)


def convert_checkpoint(
    source: Path | str,
    output: Path | str,
    *,
    categories: tuple[Category, ...] | None = None,
    norm_eps: float | None = None,
    source_config: str | None = None,
) -> ModelConfig:
    """Read a file of torchvision, detectron2, mmdetection, TensorFlow, Darknet or Caffe and write a checkpoint folder.

    Args:
        source: .pth, .pkl, .safetensors, .pb, .json, .weights or .caffemodel file; of what it holds only tensors and
            arrays are made.
        output: checkpoint folder to write.
        categories: classes in the order of the source's labels without background; None = as the file names them,
            or COCO's where their number says so, else numbered names.
        norm_eps: epsilon of the source's batch norms; None = its framework's.
        source_config: the framework's own name of the model's configuration, for what the file does not tell; checked
            against the keys. Of Darknet's weights the .cfg file, of Caffe's the .prototxt file, unless it lies beside
            them under the same name.

    Raises:
        CheckpointError: the file is missing, damaged, unsafe, of an unknown kind, or not what source_config says.
    """
    described = description(source, source_config)
    if described is not None:
        return convert_described(source, described, output, categories=categories)
    said = None if source_config is None else parse_source_config(source_config)
    file = read_foreign(source)
    return convert_file(file, source, output, categories=categories, norm_eps=norm_eps, said=said)


def description(source: Path | str, source_config: str | None) -> Path | None:
    """The file that describes the network of weights that don't say it: a .cfg of Darknet's weights, a .prototxt of
    Caffe's; None where the source is no such file.

    Raises:
        CheckpointError: it is one, but there is no description.
    """
    if source_config is not None and source_config.endswith(tuple(_DESCRIPTIONS.values())):
        return Path(source_config)
    ending = _DESCRIPTIONS.get(Path(source).suffix)
    if ending is None:
        return None
    beside = Path(source).with_suffix(ending)
    if source_config is None and beside.is_file():
        return beside
    framework = "Darknet" if ending == ".cfg" else "Caffe"
    raise CheckpointError(
        f"{source}: weights of {framework} don't say which network they are of; give its description: --source_config "
        f"FILE{ending}"
    )


def convert_described(
    source: Path | str, described: Path, output: Path | str, *, categories: tuple[Category, ...] | None
) -> ModelConfig:
    """`convert_checkpoint` of Darknet's or Caffe's weights and the file that describes them.

    Raises:
        CheckpointError: see `import_darknet` and `import_caffe_ssd`.
    """
    import_family = import_darknet if described.suffix == ".cfg" else import_caffe_ssd
    config, state = import_family(described, source, categories=categories)
    save_checkpoint(output, state, config)
    return config


def read_foreign(source: Path | str) -> SourceFile:
    """The file of a detector: its weights are looked for among all that it holds.

    Raises:
        CheckpointError: see `read_source`.
    """
    return read_source(source, lambda keys: any(is_family(keys) for is_family, _ in _FAMILIES) or is_classifier(keys))


def convert_file(
    file: SourceFile,
    source: Path | str,
    output: Path | str,
    *,
    categories: tuple[Category, ...] | None,
    norm_eps: float | None,
    said: SourceConfig | None,
) -> ModelConfig:
    """`convert_checkpoint` of a file that has been read; `said` is what its configuration's name says.

    Raises:
        CheckpointError: it is of an unknown kind, not what `said` says, or its weights are no finite numbers.
    """
    if categories is None and file.class_names is not None:
        categories = _named_categories(file.class_names)
    for is_family, import_family in _FAMILIES:
        if not is_family(file.state):
            continue
        try:
            config, state = import_family(file.state, norm_eps=norm_eps, categories=categories, source_config=said)
        except CheckpointError as error:
            raise CheckpointError(f"{source}: {error}") from error
        save_checkpoint(output, state, config)
        return config
    shown = listed(sorted(file.state)[:3])
    if is_classifier(file.state):
        raise CheckpointError(
            f"{source}: keys such as {shown} are of an image classifier, which is no detector; give it to training as "
            f"the backbone's weights: --model.backbone.weights {source}"
        )
    rest = f"; besides it holds {listed(file.left_out)}" if file.left_out else ""
    raise CheckpointError(
        f"{source}: keys such as {shown} are of no known kind; expected the state dict of a Faster, Mask or Keypoint "
        "R-CNN of torchvision, detectron2 or mmdetection, of a RetinaNet of the first two or an FCOS of torchvision"
        f"{rest}"
    )


def _named_categories(names: tuple[str, ...]) -> tuple[Category, ...]:
    """Categories of the names that a file has; COCO's own ids where they are COCO's names."""
    if names == tuple(category.name for category in COCO_CATEGORIES):
        return COCO_CATEGORIES
    return tuple(Category(number, name) for number, name in enumerate(names, start=1))
