"""The style of pages and pictures: sheets in this package, and plots that carry theirs along."""

import re
from importlib import resources

_PAGE, _PLOT = "style.css", "plot.css"
_THEME = re.compile(r":root[^{]*\{([^}]*)\}")
_COLOUR = re.compile(r"--([\w-]+):\s*([^;]+);")
_USE = re.compile(r"var\(--([\w-]+)\)")


def page_style() -> str:
    """Everything that a page of the report needs."""
    return packaged(_PAGE) + packaged(_PLOT)


def picture_style(rules: str = "") -> str:
    """What a plot needs that is a file of its own: light, and dark where the reader's system is.

    Programs that show pictures know no variables, so colours are written out.

    Args:
        rules: further ones, which may name the page's colours, such as `fill: var(--ink)`.
    """
    light, dark = (dict(_COLOUR.findall(theme)) for theme in _THEME.findall(packaged(_PAGE))[:2])
    sheet = packaged(_PLOT) + rules
    return f"{_coloured(sheet, light)}@media (prefers-color-scheme: dark) {{\n{_coloured(sheet, dark)}}}\n"


def packaged(name: str) -> str:
    """A text file of this package."""
    return resources.files("maskrcnn_core.report").joinpath(name).read_text(encoding="utf-8")


def _coloured(sheet: str, colours: dict[str, str]) -> str:
    return _USE.sub(lambda use: colours[use[1]], sheet)
