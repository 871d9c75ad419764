"""Tables whose columns sort by a click or a key; the script in `page.js` does the sorting."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        text: shown; HTML where `markup` says so, else plain.
        value: what it sorts by; None = its text, and numbers that are not defined sort last.
        markup: the text is HTML of our own.
        share: 0 to 1 for a bar before the number; None = no bar.
    """

    text: str
    value: float | str | None = None
    markup: bool = False
    share: float | None = None


def number_cell(value: float | None, digits: int = 3, *, bar: bool = False) -> Cell:
    """A number; -1 and None are not defined and become a dash."""
    if value is None or value == -1:
        return Cell("–", "")
    return Cell(f"{value:.{digits}f}", value, share=min(max(value, 0.0), 1.0) if bar else None)


def count_cell(value: int | None) -> Cell:
    """A whole number with commas between thousands."""
    return Cell("–", "") if value is None else Cell(f"{value:,}", value)


def sortable_table(
    name: str,
    caption: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    *,
    text_columns: Sequence[int] = (0,),
    sortable: bool = True,
) -> str:
    """A table in a frame that scrolls by itself where it is wider than the screen.

    Args:
        name: id of the table in the page.
        caption: for those who do not see it.
        columns: headings.
        rows: cells, as many as there are headings; the first is the row's heading.
        text_columns: columns to align left and sort as text.
        sortable: headings are buttons.
    """
    heads = "".join(_heading(text, index in text_columns, sortable) for index, text in enumerate(columns))
    body = "".join(
        f"<tr>{''.join(_cell(cell, n, n in text_columns) for n, cell in enumerate(row))}</tr>" for row in rows
    )
    return (
        f'<div class="scroll{" long" if sortable else ""}" tabindex="0" role="region" aria-label="{escape(caption)}">'
        f'<table id="{escape(name)}"><caption class="unseen">{escape(caption)}</caption>'
        f"<thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _heading(text: str, is_text: bool, sortable: bool) -> str:
    css_class = "text" if is_text else "number"
    if not sortable:
        return f'<th scope="col" class="{css_class}">{escape(text)}</th>'
    return f'<th scope="col" class="{css_class}" aria-sort="none"><button type="button">{escape(text)}</button></th>'


def _cell(cell: Cell, index: int, is_text: bool) -> str:
    text = cell.text if cell.markup else escape(cell.text)
    value = "" if cell.value is None else f' data-value="{escape(str(cell.value))}"'
    css_class = "text" if is_text else "number"
    if cell.share is not None:
        text = f'<span class="meter" style="--share:{cell.share:.3f}"></span>{text}'
    if index == 0:
        return f'<th scope="row" class="{css_class}"{value}>{text}</th>'
    return f'<td class="{css_class}"{value}>{text}</td>'


def matrix_table(labels: Sequence[str], counts: Sequence[Sequence[int]], caption: str) -> str:
    """A confusion matrix: the share of each row that lies in a cell is its shade."""
    heads = "".join(f'<th scope="col"><span>{escape(label)}</span></th>' for label in labels)
    body = []
    for label, row in zip(labels, counts, strict=True):
        total = sum(row) or 1
        cells = "".join(
            f'<td style="--share:{count / total:.3f}"{" class=strong" if count / total > 0.55 else ""}'
            f' title="{escape(label)} taken for {escape(labels[index])}: {count} of {sum(row)}">{count or ""}</td>'
            for index, count in enumerate(row)
        )
        body.append(f'<tr><th scope="row">{escape(label)}</th>{cells}</tr>')
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table class="matrix">'
        f'<caption class="unseen">{escape(caption)}</caption><thead><tr><td></td>{heads}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )
