"""A fingerprint of the code that decides about labels, so that one run never mixes two versions of it.

What decides is what `predictor` imports, directly and through others: found in the syntax trees, so that a new file
counts from its first day. What counts of a file is its code: not where it lies or what it imports from where, so that
moving files changes nothing, and neither comments nor docstrings.
"""

import ast
import functools
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import maskrcnn_core

_ENTRY = "maskrcnn_core.inference.predictor"

# Imported on the way, and no label sees them: what a notebook does with a result, what is learnt by, and
# weights before there is a checkpoint (those of a checkpoint have a fingerprint of their own).
NO_LABEL_SEES = frozenset(
    {
        "maskrcnn_core.drawing.objects",
        "maskrcnn_core.inference.image_result",
        "maskrcnn_core.layers.winograd_training",
        "maskrcnn_core.model.dense.cell_loss",
        "maskrcnn_core.model.dense.focal_loss",
        "maskrcnn_core.model.dense.grid_loss",
        "maskrcnn_core.model.dense.hard_negative_loss",
        "maskrcnn_core.model.dense.losses",
        "maskrcnn_core.model.dense.point_loss",
        "maskrcnn_core.model.dense.sampled_outputs",
        "maskrcnn_core.model.heads.mask_sampling",
        "maskrcnn_core.model.loss_counts",
        "maskrcnn_core.model.matching",
        "maskrcnn_core.model.regions.sampling",
        "maskrcnn_core.model.trunks.imagenet_weights",
    }
)


@functools.cache
def code_fingerprint() -> str:
    """16 hexadecimal digits, the same on every machine of a cluster."""
    return fingerprint_below(Path(maskrcnn_core.__file__).parent)


@functools.cache
def fingerprint_of(entry: str) -> str:
    """The same of another module of the package and what it imports."""
    return fingerprint_below(Path(maskrcnn_core.__file__).parent, entry)


def fingerprint_below(root: Path, entry: str = _ENTRY) -> str:
    """The same of a package folder given."""
    digests = sorted(_read(path.read_text()).digest for path in deciding_files(root, entry).values())
    return hashlib.sha256("".join(digests).encode()).hexdigest()[:16]


def deciding_files(root: Path, entry: str = _ENTRY) -> Mapping[str, Path]:
    """Module name -> file of everything that decides, below the folder of the package."""
    files = {_module_name(path.relative_to(root.parent)): path for path in root.rglob("*.py")}
    reached: dict[str, Path] = {}
    waiting = [entry]
    while waiting:
        name = waiting.pop()
        if name in reached or name in NO_LABEL_SEES or name not in files:
            continue
        reached[name] = files[name]
        waiting += _read(files[name].read_text()).imported
    return reached


@dataclass(frozen=True)
class _Source:
    """What a file imports, and the digest of its code."""

    imported: tuple[str, ...]
    digest: str


@functools.cache
def _read(source: str) -> _Source:
    tree = ast.parse(source)
    return _Source(tuple(_imported(tree)), hashlib.sha256(_code(source, tree)).hexdigest())


def _module_name(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def _imported(tree: ast.AST) -> Iterator[str]:
    """Names that may be modules of the package, wherever they are imported, but for type checkers alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        else:
            yield from _imported(node)


def _code(source: str, tree: ast.Module) -> bytes:
    """The source without imports, docstrings, comments in lines of their own, and empty lines.

    Lines of text, not a printed tree: that would differ between versions of Python.
    """
    left_out = {
        line
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom | ast.Expr) and _counts_for_nothing(node)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    lines = (line.strip("\r\n\f") for number, line in enumerate(source.splitlines(), 1) if number not in left_out)
    return "\n".join(line.rstrip() for line in lines if line.strip() and not line.lstrip().startswith("#")).encode()


def _counts_for_nothing(node: ast.stmt) -> bool:
    """An import, or text that stands alone: a docstring, also one of an attribute."""
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    return True
