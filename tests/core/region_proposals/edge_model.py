"""A model file of structured edges with one tree of one split, made by hand: is the gradient here strong?"""

from pathlib import Path

_PATCH, _INNER, _SHRINK = 32, 16, 2

# The channels of a patch are 16 x 16 cells; the fourth one, after the three of colour, is the gradient's magnitude.
_CELLS = _PATCH // _SHRINK
_MIDDLE_GRADIENT = 3 * _CELLS * _CELLS + (_CELLS // 2) * _CELLS + _CELLS // 2
_THRESHOLD = 0.1

# An edge counts so often, which makes it as strong as those of a forest that was trained.
_TIMES = 6


def write_edge_model(path: Path) -> None:
    """A leaf for weak gradients has no edge, the one for strong ones an edge in the middle of its patch."""
    middle = (_INNER // 2) * _INNER + _INNER // 2
    bins = [str(middle + _INNER * y + x) for y in (-1, 0, 1) for x in (-1, 0, 1)] * _TIMES
    options = {
        "stride": 2,
        "shrinkNumber": _SHRINK,
        "patchSize": _PATCH,
        "patchInnerSize": _INNER,
        "numberOfGradientOrientations": 4,
        "gradientSmoothingRadius": 0,
        "regFeatureSmoothingRadius": 2,
        "ssFeatureSmoothingRadius": 8,
        "gradientNormalizationRadius": 4,
        "selfsimilarityGridSize": 5,
        "numberOfTrees": 1,
        "numberOfTreesToEvaluate": 1,
    }
    lists = {
        "childs": "[ 2, 0, 0 ]",
        "featureIds": f"[ {_MIDDLE_GRADIENT}, 0, 0 ]",
        "thresholds": f"[ {_THRESHOLD}, 0., 0. ]",
        "edgeBoundaries": f"[ 0, 0, 0, {len(bins)} ]",
        "edgeBins": f"[ {', '.join(bins)} ]",
    }
    lines = ["%YAML:1.0", "---", "options:", *(f"   {name}: {value}" for name, value in options.items())]
    for name, values in lists.items():
        lines += [f"{name}:", f"   - {values}"]
    path.write_text("\n".join(lines) + "\n")
