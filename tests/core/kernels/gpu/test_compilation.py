"""The kernels compile for GPUs: the interpreter that runs them on a CPU does not know all of Triton's rules."""

import os
from typing import Any

import pytest

triton = pytest.importorskip("triton", reason="Triton is not installed")

INTS = ("num_boxes", "num_blocks", "max_kept", "side", "size", "channels", "height", "width")
SIZES = {
    f"{name}{level}": "fp32" if name == "scale" else "i32"
    for level in range(4)
    for name in ("height", "width", "scale")
}
POINTERS = {"boxes": "*fp32", "valid": "*i8", "keep": "*i8", "words": "*i64", "images": "*i64", "levels": "*i64"}
ALIGN = {"NUM_LEVELS": 4, "RESOLUTION": 7, "SAMPLES": 2, "BLOCK": 256}
RUNS = {"PADDED": False, "FIELDS": 11, "COLUMNS": 16, "ROWS": 64}
RUN_TYPES = {"masks": "*fp32", "windows": "*fp64", "counts": "*i64", "ends": "*i64", "positions": "*i64"}


def maps(dtype: str) -> dict[str, str]:
    return {f"map{level}": dtype for level in range(4)}


CASES = {
    "suppression within labels": (
        "suppression",
        "_suppress_group",
        {"labels": "*i64"},
        {"LABELLED": True, "BLOCK": 64},
    ),
    "overlaps": ("suppression", "_overlap_words", {}, {"BLOCK": 64}),
    "suppression by words": ("suppression", "_settle_group", {}, {"WORDS": 32, "BLOCK": 64}),
    "bias": ("bias", "_add_bias", {"maps": "*bf16", "bias": "*bf16"}, {"BLOCK": 4096}),
    "top-down step": ("top_down", "_add_enlarged", {"fine": "*bf16", "coarse": "*bf16"}, {"BLOCK": 4096}),
    "runs counted": ("mask_runs", "_window_columns", RUN_TYPES, RUNS | {"TAPS": 2, "WRITE": False}),
    "runs written": ("mask_runs", "_window_columns", RUN_TYPES, RUNS | {"TAPS": 4, "WRITE": True}),
    "RoIAlign": (
        "region_features",
        "_pyramid_rows",
        maps("*bf16") | {"output": "*bf16"},
        ALIGN | {"ALIGNED": False, "BACKWARD": False},
    ),
    "RoIAlign's gradient": (
        "region_features",
        "_pyramid_rows",
        maps("*fp32") | {"output": "*bf16"},
        ALIGN | {"ALIGNED": True, "BACKWARD": True},
    ),
}


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="compiles nothing in this process")
@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION:UserWarning")
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("case", CASES)
def test_compiles(case: str, capability: int) -> None:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    module, name, types, constants = CASES[case]
    kernel: Any = getattr(__import__(f"maskrcnn_core.kernels.gpu.{module}", fromlist=[name]), name)
    known = POINTERS | SIZES | dict.fromkeys(INTS, "i32") | {"max_overlap": "fp32", "threshold": "fp32"} | types
    names = kernel.arg_names
    signature = {argument: "constexpr" if argument in constants else known[argument] for argument in names}
    source = ASTSource(kernel, signature, {(names.index(key),): value for key, value in constants.items()})
    try:
        made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 4})
    except RuntimeError as error:
        if "ptxas" not in str(error):
            raise
        pytest.skip(f"this machine has no assembler for GPUs: {error}")
    assert len(made.asm["ptx"]) > 1000
