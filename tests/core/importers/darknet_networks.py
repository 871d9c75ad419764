"""Darknet's YOLO networks as descriptions and weights, written by hand with random numbers."""

from pathlib import Path

import numpy as np

from maskrcnn_core.weights.darknet_config import darknet_layers, parse_darknet_config, window

VOC_ANCHORS = "1.3221,1.73145, 3.19275,4.00944, 5.05587,8.09892, 9.47112,4.84053, 11.2364,10.0071"
COCO_ANCHORS = "0.57273,0.677385, 1.87446,2.06253, 3.33843,5.47434, 7.88282,3.52778, 9.77052,9.16828"
TINY_ANCHORS = "1.08,1.19, 3.42,4.41, 6.63,11.38, 9.42,5.11, 16.62,10.52"

DARKNET_19 = "32 P 64 P 128 64' 128 P 256 128' 256 P 512 256' 512 256' 512 P 1024 512' 1024 512' 1024"
EXTRACTION = (
    "7/64 P 192 P 128' 256 256' 512 P 256' 512 256' 512 256' 512 256' 512 512' 1024 P 512' 1024 512' 1024"
    " 1024 2/1024 1024 1024"
)


def net(side: int) -> str:
    return f"[net]\nbatch=1\nwidth={side}\nheight={side}\nchannels=3\n"


def conv(filters: int, side: int = 3, stride: int = 1, *, norm: bool = True, activation: str = "leaky") -> str:
    normed = "batch_normalize=1\n" if norm else ""
    return f"[convolutional]\n{normed}filters={filters}\nsize={side}\nstride={stride}\npad=1\nactivation={activation}\n"


def chain(words: str, *, norm: bool = True) -> str:
    """Convolutions by their width: 64' is 1x1, 7/64 and 2/1024 have a side and a stride; P halves."""
    text = ""
    for word in words.split():
        if word == "P":
            text += "[maxpool]\nsize=2\nstride=2\n"
        elif "/" in word:
            first, width = word.split("/")
            text += conv(int(width), 7 if first == "7" else 3, 2, norm=norm)
        else:
            text += conv(int(word.rstrip("'")), 1 if word.endswith("'") else 3, norm=norm)
    return text


def region(classes: int, anchors: str) -> str:
    scales = "object_scale=5\nnoobject_scale=1\nclass_scale=1\ncoord_scale=1\n"
    return (
        f"[region]\nanchors={anchors}\nbias_match=1\nclasses={classes}\ncoords=4\nnum={len(anchors.split(',')) // 2}\n"
        f"softmax=1\njitter=.3\nrescore=1\n{scales}absolute=1\nthresh=0\nrandom=0\n"
    )


def yolov2(classes: int, anchors: str, side: int) -> str:
    """YOLOv2 of Pascal VOC (20 classes) or COCO (80)."""
    out = conv(5 * (5 + classes), 1, norm=False, activation="linear")
    middle = conv(1024) * 2 + "[route]\nlayers=-9\n" + conv(64, 1) + "[reorg]\nstride=2\n[route]\nlayers=-1,-4\n"
    return net(side) + chain(DARKNET_19) + middle + conv(1024) + out + region(classes, anchors)


def tiny_yolov2(classes: int, anchors: str, side: int) -> str:
    out = conv(5 * (5 + classes), 1, norm=False, activation="linear")
    start = chain("16 P 32 P 64 P 128 P 256 P 512") + "[maxpool]\nsize=2\nstride=1\n"
    return net(side) + start + conv(1024) * 2 + out + region(classes, anchors)


def detection(classes: int, boxes: int, grid: int = 7) -> str:
    return (
        f"[detection]\nclasses={classes}\ncoords=4\nrescore=1\nside={grid}\nnum={boxes}\nsoftmax=0\nsqrt=1\njitter=.2\n"
        "object_scale=1\nnoobject_scale=.5\nclass_scale=1\ncoord_scale=5\n"
    )


def tiny_yolov1(classes: int = 20, *, with_detection: bool = True) -> str:
    """Darknet's yolov1-tiny, 1,470 numbers; without the last layer for OpenCV, which doesn't know it."""
    out = f"[connected]\noutput={49 * (classes + 10)}\nactivation=linear\n"
    end = detection(classes, 2) if with_detection else ""
    return net(448) + chain("16 P 32 P 64 P 128 P 256 P 512 P 1024 256") + out + end


def yolov1(classes: int, boxes: int, *, local: int, side: int = 448) -> str:
    """Darknet's yolov1 (batch norm, a locally connected layer), or with local=0 that of the paper."""
    grid = side // 64
    hidden = (
        f"[local]\nsize=3\nstride=1\npad=1\nfilters={local}\nactivation=leaky\n"
        if local
        else "[connected]\noutput=64\nactivation=leaky\n"
    )
    out = f"[connected]\noutput={grid**2 * (classes + 5 * boxes)}\nactivation=linear\n"
    dropout = "[dropout]\nprobability=.5\n"
    return net(side) + chain(EXTRACTION, norm=bool(local)) + hidden + dropout + out + detection(classes, boxes, grid)


def write(folder: Path, text: str, *, seed: int = 0) -> tuple[Path, Path]:
    """The description and random weights that keep activations of some size: paths of .cfg and .weights."""
    rng = np.random.default_rng(seed)
    cfg, weights = folder / "net.cfg", folder / "net.weights"
    cfg.write_text(text)

    def normal(*shape: int, std: float = 1.0) -> np.ndarray:
        return rng.standard_normal(shape, np.float32) * np.float32(std)

    with weights.open("wb") as file:
        file.write(np.array([0, 2, 0, 0, 0], "<i4").tobytes())
        for layer in darknet_layers(parse_darknet_config(text)):
            out, inputs = layer.output_size, layer.input_size
            norm = layer.section.number("batch_normalize", 0)
            pieces: list[np.ndarray] = []
            statistics = [rng.uniform(0.5, 1.5, out[0]), normal(out[0], std=0.1), rng.uniform(0.5, 1.5, out[0])]
            if layer.kind == "convolutional":
                side = window(layer.section)[1]
                fan = inputs[0] * side**2
                is_last = layer.section.options.get("activation") == "linear"
                kernel = normal(out[0], fan, std=0.1 / fan**0.5 if is_last else (2 / fan) ** 0.5)
                pieces = [normal(out[0], std=0.1), *(statistics if norm else []), kernel]
            elif layer.kind == "connected":
                fan = inputs[0] * inputs[1] * inputs[2]
                pieces = [normal(out[0], std=0.1), normal(out[0], fan, std=(1 / fan) ** 0.5)]
            elif layer.kind == "local":
                fan, cells = inputs[0] * 9, out[1] * out[2]
                pieces = [normal(out[0] * cells, std=0.1), normal(cells, out[0] * fan, std=(2 / fan) ** 0.5)]
            for piece in pieces:
                file.write(piece.astype("<f4").tobytes())
    return cfg, weights
