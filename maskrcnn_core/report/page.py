"""The page as one HTML text: style, script and pictures lie in it, and its own policy forbids it to fetch anything."""

import base64
import hashlib
import json
from collections.abc import Sequence
from html import escape

from maskrcnn_core.report.content import ReportContent
from maskrcnn_core.report.gallery import gallery_tabs
from maskrcnn_core.report.score_sections import (
    KIND_TITLES,
    category_facts,
    category_section,
    category_template,
    curves_section,
    errors_section,
    numbers_section,
)
from maskrcnn_core.report.stylesheets import packaged, page_style
from maskrcnn_core.report.table import Cell, sortable_table

_SCRIPT = "page.js"


def page_html(content: ReportContent) -> str:
    """The whole page.

    Every text of the user's (file names, categories, paths, errors) is escaped; the script is the only one that the
    page's content security policy lets run, and it writes text, never HTML.
    """
    style, script = page_style(), packaged(_SCRIPT)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    sections = [(name, title, body) for name, title, body in _sections(content) if body]
    links = "".join(f'<a href="#{name}">{escape(title)}</a>' for name, title, _ in sections)
    main = "".join(
        f'<section id="{name}" aria-labelledby="{name}-title"><h2 id="{name}-title">{escape(title)}</h2>{body}'
        "</section>"
        for name, title, body in sections
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(content.title)}</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the content</a>
<header class="top"><div class="inside">
<div class="heading"><h1>{escape(content.title)}</h1><p>{escape(content.subtitle)}</p></div>
<button type="button" id="theme" hidden>Dark</button>
</div></header>
<nav aria-label="Sections"><div class="inside">{links}</div></nav>
<main id="main" class="inside">{main}</main>
{_lightbox()}
{category_template(content)}
<script type="application/json" id="facts">{_json(category_facts(content))}</script>
<script>{script}</script>
</body>
</html>
"""


def _json(value: object) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(value, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _sections(content: ReportContent) -> Sequence[tuple[str, str, str]]:
    """Id, title and HTML of each section; without HTML there is nothing to show."""
    return (
        ("numbers", "Summary", _tiles(content) + numbers_section(content)),
        ("curves", "Curves", curves_section(content)),
        ("errors", "Errors", errors_section(content)),
        ("categories", "Categories", category_section(content)),
        ("pictures", "Pictures", _pictures(content)),
        ("images", "Images", _images(content)),
        ("made", "How it was made", _made(content)),
    )


def _tiles(content: ReportContent) -> str:
    tiles = []
    if content.numbers is not None:
        for kind, stats in content.numbers.stats.items():
            note = f"AP50 {_share(stats[1])}<br>AP75 {_share(stats[2])}"
            details = content.details.kinds.get(kind) if content.details else None
            if details is not None:
                interval = details.interval
                note = f"{100 * interval.level:g} %: {_share(interval.low)} – {_share(interval.high)}<br>{note}"
            tiles.append(("main", f"{KIND_TITLES[kind]} AP", _share(stats[0]), note))
    failed = f"{content.failed:,} failed" if content.failed else "none failed"
    tiles.append(("", "Images", f"{content.images:,}", failed))
    confident = sum(category.confident for category in content.categories)
    tiles.append(("", "Detections", f"{content.detections:,}", f"{confident:,} with score ≥ {content.min_score:g}"))
    if content.numbers is not None:
        tiles.append(("", "Objects", f"{content.numbers.annotations:,}", "annotated"))
    num_found = sum(1 for category in content.categories if category.confident)
    if len(content.categories) > 1:
        tiles.append(("", "Categories", f"{len(content.categories):,}", f"{num_found:,} found"))
    inner = "".join(
        f'<div class="tile {look}"><dt>{escape(name)}</dt><dd><b>{value}</b><span>{note}</span></dd></div>'
        for look, name, value, note in tiles
    )
    return f'<dl class="tiles">{inner}</dl>'


def _share(value: float) -> str:
    return "–" if value == -1 else f"{value:.3f}"


def _pictures(content: ReportContent) -> str:
    if not content.examples and not content.left_out:
        return ""
    how = f"Detections with a score from {content.min_score:g} on are drawn."
    if content.numbers is not None:
        how += f" Right is one whose box has an IoU from {content.match_overlap:g} on with an object of its category."
    said = f'<p class="warning">{escape(content.left_out)}</p>' if content.left_out else ""
    hint = '<p class="note scripted">A picture opens large; there arrow keys go on and Escape closes.</p>'
    galleries = gallery_tabs(content.examples) if content.examples else ""
    return f'<p class="note">{escape(how)}</p>{hint if content.examples else ""}{said}{galleries}'


def _images(content: ReportContent) -> str:
    total = max(content.images, 1)
    rows = [
        (Cell(status), Cell(f"{count:,}", count), Cell(f"{100 * count / total:.1f} %", count))
        for status, count in sorted(content.statuses.items(), key=lambda entry: (entry[0] != "ok", -entry[1]))
    ]
    parts = ['<div class="columns"><div><h3>By status</h3>']
    parts.append(sortable_table("statuses", "Images by status", ("status", "images", "share"), rows, sortable=False))
    parts.append(_coverage(content) + "</div>")
    if content.failures:
        failed = [(Cell(row.uri), Cell(row.status), Cell(row.error)) for row in content.failures]
        parts.append(
            f"<div><h3>{'Failed' if len(failed) == content.failed else f'The first {len(failed)} that failed'}</h3>"
        )
        columns = ("image", "status", "reason")
        parts.append(
            sortable_table("failures", "Failed images", columns, failed, text_columns=(0, 1, 2), sortable=False)
        )
        parts.append("</div>")
    return "".join(parts) + "</div>"


def _coverage(content: ReportContent) -> str:
    if content.numbers is None:
        return ""
    coverage = content.numbers.coverage
    lines = []
    if coverage.unlabelled or coverage.failed:
        lines.append(
            f"{coverage.unlabelled:,} of {coverage.images:,} annotated images have no label row and "
            f"{coverage.failed:,} failed; they count as images in which nothing was found."
        )
    if coverage.unknown:
        lines.append(f"{coverage.unknown:,} label rows are of images without annotations; they are not scored.")
    for kind, reason in content.numbers.skipped.items():
        lines.append(f"{KIND_TITLES[kind]} not scored: {reason}.")
    return "".join(f'<p class="note">{escape(line)}</p>' for line in lines)


def _made(content: ReportContent) -> str:
    entries = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in content.made.items()
    )
    return f'<dl class="facts">{entries}</dl>'


def _lightbox() -> str:
    return """<dialog id="lightbox" aria-labelledby="lightbox-title">
<div class="bar"><h2 id="lightbox-title"></h2><span class="place"></span>
<button type="button" data-do="close" aria-label="Close">✕</button></div>
<div class="pair"></div>
<div class="bar foot"><button type="button" data-do="previous" aria-label="Previous picture">←</button>
<p><span class="note"></span><span class="source"></span></p>
<button type="button" data-do="next" aria-label="Next picture">→</button></div>
</dialog>"""
