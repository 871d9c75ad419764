"""Caffe's SSDs as descriptions and weights, written by hand with random numbers."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

VGG = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))


def key(number: int, wire: int) -> bytes:
    return varint(number << 3 | wire)


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def piece(number: int, content: bytes) -> bytes:
    """A field of bytes."""
    return key(number, 2) + varint(len(content)) + content


def blob(values: np.ndarray) -> bytes:
    shape = piece(1, b"".join(varint(side) for side in values.shape))
    return piece(7, shape) + piece(5, values.astype("<f4").tobytes())


def layer_message(name: str, kind: str, blobs: list[np.ndarray]) -> bytes:
    parts = piece(1, name.encode()) + piece(2, kind.encode())
    return piece(100, parts + b"".join(piece(7, blob(values)) for values in blobs))


@dataclass
class Written:
    """A network that grows layer by layer."""

    side: int
    seed: int = 0
    text: str = ""
    weights: bytes = b""
    random: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)
        sizes = "".join(f" dim: {number}" for number in (1, 3, self.side, self.side))
        self.text = f'input: "data"  # the image\ninput_shape {{{sizes} }}\n'

    def layer(
        self, name: str, kind: str, bottoms: str, options: str = "", *, top: str = "", blobs: list | None = None
    ) -> str:
        """Appends a layer; its top, by default of its own name."""
        tops = "".join(f'  bottom: "{one}"\n' for one in bottoms.split()) + f'  top: "{top or name}"\n'
        self.text += f'layer {{\n  name: "{name}"\n  type: "{kind}"\n{tops}  {options}\n}}\n'
        if blobs:
            self.weights += layer_message(name, kind, blobs)
        return top or name

    def conv(
        self,
        name: str,
        below: str,
        sizes: tuple[int, int],
        side: int = 3,
        stride: int = 1,
        pad: int = 1,
        dilation: int = 1,
        *,
        bias: bool = True,
        gain: float = 1.0,
    ) -> str:
        """A convolution of (in, out) channels whose outputs are about as large as its inputs."""
        out = sizes[1]
        options = f"convolution_param {{ num_output: {out} kernel_size: {side} stride: {stride} pad: {pad} "
        options += f"dilation: {dilation} bias_term: {str(bias).lower()} }}"
        scale = gain * (2 / (sizes[0] * side * side)) ** 0.5
        blobs = [self.random.normal(0, scale, (out, sizes[0], side, side)), self.random.normal(0, 0.1, out)]
        return self.layer(name, "Convolution", below, options, blobs=blobs[: 1 + bias])

    def relu(self, name: str, below: str) -> str:
        return self.layer(name, "ReLU", below, top=below)

    def norm(self, name: str, below: str, channels: int, *, top: str = "") -> str:
        """BatchNorm and Scale, the latter in place; the statistics are sums over 4 batches."""
        mean, variance = self.random.normal(0, 0.4, channels), self.random.uniform(2, 6, channels)
        made = self.layer(f"{name}_bn", "BatchNorm", below, top=top or below, blobs=[mean, variance, np.array([4.0])])
        gamma, beta = self.random.uniform(0.7, 1.3, channels), self.random.normal(0, 0.2, channels)
        return self.layer(
            f"{name}_scale", "Scale", made, "scale_param { bias_term: true }", top=made, blobs=[gamma, beta]
        )

    def tail(self, below: str, channels: int, steps: str) -> list[tuple[str, int]]:
        """SSD's: `256s` is a level of 256 channels with stride 2; v, e, k: valid, even, keep. Ends and widths."""
        levels = []
        for number, word in enumerate(steps.split(), start=6):
            width = int(word[:-1])
            side, stride, pad = {"s": (3, 2, 1), "v": (3, 1, 0), "e": (4, 1, 1), "k": (3, 1, 1)}[word[-1]]
            below = self.conv(f"conv{number}_1", below, (channels, width // 2), 1, pad=0)
            self.relu(f"relu{number}_1", below)
            below = self.conv(f"conv{number}_2", below, (width // 2, width), side, stride, pad)
            self.relu(f"relu{number}_2", below)
            channels = width
            levels.append((below, width))
        return levels

    def heads(self, levels: list[tuple[str, int]], classes: int, sizes: list[float], steps: list[float]) -> None:
        """Predictors and default boxes of each level, and what gathers them; `classes` without background."""
        names: dict[str, list[str]] = {"loc": [], "conf": [], "prior": []}
        for number, (source, channels) in enumerate(levels):
            ratios = "aspect_ratio: 2" + ("" if number in (0, len(levels) - 2, len(levels) - 1) else " aspect_ratio: 3")
            boxes = 2 + 2 * ratios.count("aspect")
            for part, each in (("loc", 4), ("conf", classes + 1)):
                conv = self.conv(
                    f"level{number}_{part}", source, (channels, boxes * each), gain=0.01 if number else 0.3
                )
                ordered = self.layer(
                    f"{conv}_perm", "Permute", conv, "permute_param { order: 0 order: 2 order: 3 order: 1 }"
                )
                names[part].append(self.layer(f"{conv}_flat", "Flatten", ordered, "flatten_param { axis: 1 }"))
            said = f"min_size: {sizes[number]} max_size: {sizes[number + 1]} {ratios} flip: true clip: false "
            said += f"variance: 0.1 variance: 0.1 variance: 0.2 variance: 0.2 step: {steps[number]} offset: 0.5"
            names["prior"].append(
                self.layer(f"level{number}_prior", "PriorBox", f"{source} data", f"prior_box_param {{ {said} }}")
            )
        for part, axis in (("loc", 1), ("conf", 1), ("prior", 2)):
            self.layer(part, "Concat", " ".join(names[part]), f"concat_param {{ axis: {axis} }}")
        shape = f"reshape_param {{ shape {{ dim: 0 dim: -1 dim: {classes + 1} }} }}"
        self.layer("conf_reshape", "Reshape", "conf", shape)
        self.layer("conf_softmax", "Softmax", "conf_reshape", "softmax_param { axis: 2 }")
        self.layer("conf_flat", "Flatten", "conf_softmax", "flatten_param { axis: 1 }")
        said = f"num_classes: {classes + 1} share_location: true background_label_id: 0 "
        said += "nms_param { nms_threshold: 0.45 top_k: 400 } code_type: CENTER_SIZE keep_top_k: 200 "
        said += "confidence_threshold: 0.01"
        self.layer("detection_out", "DetectionOutput", "loc conf_flat prior", f"detection_output_param {{ {said} }}")

    def files(self, folder: Path) -> tuple[Path, Path]:
        """The network written down."""
        described, weights = folder / "net.prototxt", folder / "net.caffemodel"
        described.write_text(self.text)
        weights.write_bytes(piece(1, b"net") + self.weights)
        return described, weights


def vgg_ssd(classes: int, side: int, tail: str, sizes: list[float], steps: list[float]) -> Written:
    """SSD300 or SSD512 as its authors' deploy.prototxt has it."""
    net = Written(side)
    below, channels = "data", 3
    finest = ""
    for stage, (width, convs) in enumerate(VGG, start=1):
        for number in range(1, convs + 1):
            below = net.conv(f"conv{stage}_{number}", below, (channels, width))
            net.relu(f"relu{stage}_{number}", below)
            channels = width
        finest = below if stage == 4 else finest
        size = "kernel_size: 2 stride: 2" if stage < 5 else "kernel_size: 3 stride: 1 pad: 1"
        below = net.layer(f"pool{stage}", "Pooling", below, f"pooling_param {{ pool: MAX {size} }}")
    below = net.conv("fc6", below, (512, 1024), 3, pad=6, dilation=6)
    net.relu("relu6", below)
    net.layer("drop6", "Dropout", below, "dropout_param { dropout_ratio: 0.5 }", top=below)
    below = net.conv("fc7", below, (1024, 1024), 1, pad=0)
    net.relu("relu7", below)
    levels = [(below, 1024), *net.tail(below, 1024, tail)]
    norm = 'norm_param { across_spatial: false channel_shared: false scale_filler { type: "constant" value: 20 } }'
    normed = net.layer("conv4_3_norm", "Normalize", finest, norm, blobs=[net.random.uniform(10, 20, 512)])
    net.heads([(normed, 512), *levels], classes, sizes, steps)
    return net


def face_ssd(side: int = 300) -> Written:
    """A network like OpenCV's face detector."""
    net = Written(side)
    net.norm("data", "data", 3, top="data_bn")
    below = net.conv("conv1", "data_bn", (3, 32), 7, 2, 3)
    net.relu("relu1", net.norm("one", below, 32))
    pool = net.layer("pool1", "Pooling", below, "pooling_param { kernel_size: 3 stride: 2 }")
    inner = net.conv("block0_1", pool, (32, 32), bias=False)
    net.relu("relu2", net.norm("two", inner, 32))
    last = net.conv("block0_2", inner, (32, 32), bias=False)
    below, channels, finest = net.layer("sum0", "Eltwise", f"{last} {pool}"), 32, ""
    blocks = ((128, 128, 2, 1), (256, 256, 2, 1), (128, 256, 1, 2))
    for number, (middle, out, stride, dilation) in enumerate(blocks, start=1):
        before = net.norm(f"before{number}", below, channels, top=f"before{number}")
        net.relu(f"before{number}_relu", before)
        finest = before if number == 2 else finest
        inner = net.conv(f"block{number}_1", before, (channels, middle), 3, stride, bias=False)
        net.relu(f"inner{number}_relu", net.norm(f"inner{number}", inner, middle))
        last = net.conv(f"block{number}_2", inner, (middle, out), pad=dilation, dilation=dilation, bias=False)
        around = net.conv(f"block{number}_3", before, (channels, out), 1, stride, 0, bias=False)
        below, channels = net.layer(f"sum{number}", "Eltwise", f"{last} {around}"), out
    net.norm("last", below, channels)
    net.layer("last_relu", "ReLU", below, top="fc7")
    levels = [("fc7", 256), *net.tail("fc7", 256, "256s 128s 128k 128k")]
    norm = "norm_param { across_spatial: false channel_shared: false }"
    normed = net.layer("norm", "Normalize", finest, norm, blobs=[net.random.uniform(10, 20, 128)])
    net.heads([(normed, 128), *levels], 1, [30, 60, 111, 162, 213, 264, 315], [8, 16, 32, 64, 100, 300])
    return net
