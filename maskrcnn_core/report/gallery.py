"""Galleries of examples: a strip of tabs, and pictures that open large."""

import base64
from collections.abc import Sequence
from html import escape

from maskrcnn_core.report.content import Example, ExampleKind, Panel

TITLES: dict[ExampleKind, tuple[str, str]] = {
    "right": ("True positives", "Found, of the right category and in the right place; best first."),
    "missed": ("Misses", "Annotated, and not found with enough confidence; largest first."),
    "wrong": ("False positives", "Found, but nothing of this category is annotated there; most confident first."),
    "mask": ("Worst masks", "The box is right and the mask is not; worst first."),
    "crowded": ("Most objects", "Images with most confident detections."),
    "sure": ("Most confident", "The best detection of an image; most confident first."),
    "unsure": ("Least confident", "The weakest detection that still counts as confident; weakest first."),
}
"""Name and meaning of each gallery."""


def gallery_tabs(examples: Sequence[Example]) -> str:
    """All galleries that have examples, as tabs; without scripts they stand below each other."""
    kinds = [kind for kind in TITLES if any(example.kind == kind for example in examples)]
    tabs = "".join(
        f'<button type="button" role="tab" id="tab-{kind}" aria-controls="gallery-{kind}" '
        f'aria-selected="{"true" if index == 0 else "false"}" tabindex="{0 if index == 0 else -1}">'
        f"{escape(TITLES[kind][0])} <span>{sum(example.kind == kind for example in examples)}</span></button>"
        for index, kind in enumerate(kinds)
    )
    panels = "".join(_gallery(kind, [example for example in examples if example.kind == kind]) for kind in kinds)
    return f'<div class="tabs" role="tablist" aria-label="Galleries">{tabs}</div>{panels}'


def _gallery(kind: ExampleKind, examples: Sequence[Example]) -> str:
    cards = "".join(_card(example) for example in examples)
    return (
        f'<div class="gallery" role="tabpanel" id="gallery-{kind}" aria-labelledby="tab-{kind}">'
        f'<p class="note">{escape(TITLES[kind][1])}</p><div class="cards">{cards}</div></div>'
    )


def _card(example: Example) -> str:
    category = "" if example.category_id is None else f' data-category="{example.category_id}"'
    panels = "".join(_panel(panel) for panel in example.panels)
    return (
        f'<button type="button" class="card" data-kind="{example.kind}"{category} '
        f'data-source="{escape(example.source)}">'
        f'<span class="pair">{panels}</span>'
        f'<span class="caption"><strong>{escape(example.title)}</strong> <span>{escape(example.note)}</span></span>'
        "</button>"
    )


def _panel(panel: Panel) -> str:
    encoded = base64.b64encode(panel.picture).decode()
    focus = ""
    if panel.focus is not None:
        left, top, width, height = (f"{100 * value:.2f}%" for value in panel.focus)
        focus = f'<span class="focus" style="left:{left};top:{top};width:{width};height:{height}"></span>'
    return (
        f'<span class="panel"><span class="frame"><img src="data:image/webp;base64,{encoded}" width="{panel.width}" '
        f'height="{panel.height}" alt="{escape(panel.heading)}" decoding="async">{focus}</span>'
        f'<span class="heading">{escape(panel.heading)}</span></span>'
    )
