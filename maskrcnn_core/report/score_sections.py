"""The parts of the page that show numbers: tables of COCO's numbers, curves, kinds of errors, categories."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from maskrcnn_core.evaluation.analysis import ERROR_KINDS, CategoryDetails, KindDetails, PrecisionRecallCurve
from maskrcnn_core.evaluation.coco import KEYPOINT_STAT_NAMES, STAT_NAMES
from maskrcnn_core.report.charts import (
    Axis,
    Line,
    count_axis,
    curve_frame,
    curve_path,
    histogram_chart,
    line_chart,
    share_axis,
    short_number,
)
from maskrcnn_core.report.content import CategoryCount, Histogram, ReportContent
from maskrcnn_core.report.table import Cell, count_cell, matrix_table, number_cell, sortable_table

KIND_TITLES = {"bbox": "Box", "segm": "Mask", "keypoints": "Keypoint"}
"""What the page calls COCO's iou types."""

_MEANINGS = {
    "AP": "IoU 0.50 to 0.95",
    "AP50": "IoU 0.50",
    "AP75": "IoU 0.75",
    "APs": "small, below 32² px",
    "APm": "medium",
    "APl": "large, from 96² px",
    "AR": "recall",
    "AR50": "recall, OKS 0.50",
    "AR75": "recall, OKS 0.75",
    "AR1": "recall, 1 detection",
    "AR10": "recall, 10 detections",
    "AR100": "recall, all detections",
    "ARs": "recall, small",
    "ARm": "recall, medium",
    "ARl": "recall, large",
}
_ERROR_MEANINGS = {
    "classification": "right place, wrong category",
    "localisation": "right category, badly placed",
    "both": "wrong category and badly placed",
    "duplicate": "the object was found already",
    "background": "nothing is there",
    "missed": "not found, and none of the errors above explains it",
}
_RECALLS = tuple(index / 100 for index in range(101))
_MOST_MATRIX_ROWS = 25
_MOST_CONFUSIONS = 25
_FILTER_FROM = 12  # categories


def numbers_section(content: ReportContent) -> str:
    """COCO's 12 numbers of boxes and masks side by side, and the 10 of keypoints."""
    if content.numbers is None:
        return ""
    stats = content.numbers.stats
    tables = []
    shapes = [kind for kind in stats if kind != "keypoints"]
    if shapes:
        shown = {KIND_TITLES[kind].lower(): stats[kind] for kind in shapes}
        masks = content.details.kinds.get("segm") if content.details else None
        if masks is not None and masks.boundary is not None:
            shown["boundary"] = masks.boundary
        tables.append(_stat_table("coco", STAT_NAMES, shown))
    if "keypoints" in stats:
        tables.append(_stat_table("coco-keypoints", KEYPOINT_STAT_NAMES, {"keypoint": stats["keypoints"]}))
    tables += _federated_tables(content)
    blocks = "".join(f"<div>{table}</div>" for table in tables)
    return f'<div class="columns">{blocks}<div class="stack">{_distributions(content)}</div></div>'


def _stat_table(name: str, stat_names: Sequence[str], stats: Mapping[str, Sequence[float]]) -> str:
    rows = [
        (
            Cell(f'<span class="stat"><b>{stat}</b> <small>{escape(_MEANINGS[stat])}</small></span>', markup=True),
            *(number_cell(values[index], bar=True) for values in stats.values()),
        )
        for index, stat in enumerate(stat_names)
    ]
    return sortable_table(name, "COCO's numbers", ("COCO", *stats), rows, sortable=False)


def _federated_tables(content: ReportContent) -> list[str]:
    """LVIS' numbers, where the annotations are federated."""
    scores = {
        KIND_TITLES[name].lower(): details.federated
        for name, details in (content.details.kinds.items() if content.details else ())
        if details.federated is not None
    }
    if not scores:
        return []
    names = next(iter(scores.values())).names
    rows = [
        (Cell(stat), *(number_cell(one.stats[index], bar=True) for one in scores.values()))
        for index, stat in enumerate(names)
    ]
    return [sortable_table("lvis", "LVIS' numbers", ("LVIS", *scores), rows, sortable=False)]


def _distributions(content: ReportContent) -> str:
    judged = content.numbers is not None
    charts = [
        _figure(
            "Scores",
            "of all detections" + (", right and wrong ones" if judged else ""),
            histogram_chart(content.scores, share_axis("score"), label="Number of detections by score"),
        ),
        _figure("Sizes", "side of a square of the box's area", _size_chart(content.sizes)),
    ]
    if not judged:
        charts.append(_figure("Objects per image", f"with score ≥ {content.min_score:g}", _per_image_chart(content)))
    return "".join(charts)


def _size_chart(sizes: Histogram) -> str:
    """Edges are powers of the square root of two: each bin is as wide as the others on the page."""
    positions = tuple(range(len(sizes.edges)))
    ticks = tuple(position for position, edge in zip(positions, sizes.edges, strict=True) if float(edge).is_integer())
    ticks = ticks[:: max(1, len(ticks) // 6)]
    labels = tuple(short_number(sizes.edges[position]) for position in ticks)
    axis = Axis("pixels", 0, len(positions) - 1, ticks, labels)
    return histogram_chart(sizes, axis, label="Number of boxes by size", positions=positions)


def _per_image_chart(content: ReportContent) -> str:
    edges = content.per_image.edges
    return histogram_chart(content.per_image, count_axis("objects", edges[-1]), label="Number of images by objects")


def _figure(title: str, note: str, chart: str, more: str = "") -> str:
    return f"<figure><figcaption><h3>{escape(title)}</h3><p>{escape(note)}</p></figcaption>{chart}{more}</figure>"


def curves_section(content: ReportContent) -> str:
    """Precision over recall, AP over the overlap, calibration; distributions where there is no ground truth."""
    if content.numbers is None:
        return f'<div class="charts">{_distributions(content)}</div>'
    if content.details is None or not content.details.kinds:
        return ""
    kinds = content.details.kinds
    charts = [
        _figure(f"{KIND_TITLES[name]}: precision over recall", "mean over categories", _curves(details.mean_curves))
        for name, details in kinds.items()
    ]
    charts.append(_figure("AP by overlap", "how much is lost as the overlap asked for grows", _ap_by_overlap(kinds)))
    charts += [
        _figure(
            f"{KIND_TITLES[name]}: calibration",
            f"share of right detections by score; mean gap {details.calibration.ece:.3f}",
            _calibration(details),
        )
        for name, details in kinds.items()
    ]
    return f'<div class="charts">{"".join(charts)}</div>'


def _curves(curves: Sequence[PrecisionRecallCurve]) -> str:
    lines = [
        Line(f"IoU {curve.iou:.2f}", _points(curve), series, filled=series == 0) for series, curve in enumerate(curves)
    ]
    return line_chart(lines, share_axis("recall"), share_axis("precision"), label="Precision over recall")


def _points(curve: PrecisionRecallCurve) -> tuple[tuple[float, float], ...]:
    """Recall and precision, up to the first recall that is not reached."""
    reached = next((index for index, value in enumerate(curve.precision) if value <= 0), len(_RECALLS) - 1)
    return tuple(zip(_RECALLS[: reached + 1], curve.precision[: reached + 1], strict=True))


def _ap_by_overlap(kinds: Mapping[str, KindDetails]) -> str:
    lines = [
        Line(KIND_TITLES[name], tuple(zip(details.ious, details.ap_per_iou, strict=True)), series, dots=True)
        for series, (name, details) in enumerate(kinds.items())
    ]
    ticks = (0.5, 0.6, 0.7, 0.8, 0.9)
    axis = Axis("IoU or OKS", 0.48, 0.97, ticks, (".5", ".6", ".7", ".8", ".9"))
    return line_chart(lines, axis, share_axis("AP"), label="AP over the overlap threshold")


def _calibration(details: KindDetails) -> str:
    points = tuple((entry.mean_score, entry.precision) for entry in details.calibration.bins if entry.count)
    lines = [Line("", ((0.0, 0.0), (1.0, 1.0)), 7, dashed=True), Line("measured", points, 0, dots=True)]
    return line_chart(lines, share_axis("score"), share_axis("precision"), label="Share of right detections over score")


def errors_section(content: ReportContent) -> str:
    """What each kind of error costs, and which categories are taken for which."""
    kinds = content.details.kinds if content.details else {}
    parts = []
    for name, details in kinds.items():
        if details.errors is not None:
            parts.append(f"<div>{_error_table(name, details)}</div>")
    tables = f'<div class="columns">{"".join(parts)}</div>' if parts else ""
    matrices = [_confusion(name, details) for name, details in kinds.items() if details.confusion is not None]
    return tables + (
        f'<div class="columns">{"".join(f"<div>{one}</div>" for one in matrices)}</div>' if matrices else ""
    )


def _error_table(name: str, details: KindDetails) -> str:
    errors = details.errors
    assert errors is not None
    largest = max((*errors.ap_costs.values(), errors.false_positive_cost, errors.false_negative_cost, 1e-9))
    rows = [
        (
            Cell(f"<b>{escape(error)}</b> <small>{escape(_ERROR_MEANINGS[error])}</small>", error, markup=True),
            Cell(
                f"{errors.ap_costs[error]:.3f}",
                errors.ap_costs[error],
                share=max(errors.ap_costs[error], 0.0) / largest,
            ),
            count_cell(errors.counts.get(error)),
        )
        for error in ERROR_KINDS
    ]
    title = f"<h3>{KIND_TITLES[name]}: what errors cost</h3>"
    note = (
        f"AP at IoU {errors.iou:g} is {errors.ap:.3f}. The cost of a kind is how much it would grow if these errors, "
        f"and only these, were mended; all wrong detections together cost {errors.false_positive_cost:.3f}, all missed "
        f"objects {errors.false_negative_cost:.3f}."
    )
    table = sortable_table(f"errors-{name}", f"{KIND_TITLES[name]} errors", ("error", "AP cost", "count"), rows)
    return f'{title}<p class="note">{escape(note)}</p>{table}'


def _confusion(name: str, details: KindDetails) -> str:
    """The matrix where it can be read, and the most frequent confusions where there are too many categories."""
    matrix = details.confusion
    assert matrix is not None
    title = f"<h3>{KIND_TITLES[name]}: what is taken for what</h3>"
    note = f"Score from {matrix.min_score:g} on, IoU {matrix.iou:g}. Rows are annotated, columns detected."
    if len(matrix.labels) <= _MOST_MATRIX_ROWS:
        table = matrix_table(matrix.labels, matrix.counts, f"{KIND_TITLES[name]} confusion matrix")
        return f'{title}<p class="note">{escape(note)}</p>{table}'
    last = len(matrix.labels) - 1
    pairs = sorted(
        (
            (count, true, taken)
            for true, row in enumerate(matrix.counts)
            for taken, count in enumerate(row)
            if count and true != taken and last not in (true, taken)
        ),
        reverse=True,
    )[:_MOST_CONFUSIONS]
    rows = [(Cell(matrix.labels[true]), Cell(matrix.labels[taken]), count_cell(count)) for count, true, taken in pairs]
    columns = ("annotated", "detected", "times")
    table = sortable_table(f"confused-{name}", "Most frequent confusions", columns, rows, text_columns=(0, 1))
    more = f"The {len(rows)} most frequent confusions between categories. "
    return f'{title}<p class="note">{escape(more + note)}</p>{table}'


def category_section(content: ReportContent) -> str:
    """A table of all categories that sorts; a name opens what is known about the category."""
    numbers = content.numbers
    kinds = list(numbers.stats) if numbers is not None else []
    scores = {category.id: category.ap for category in numbers.per_category} if numbers is not None else {}
    best = {kind: _by_category(content, kind) for kind in kinds}
    columns = ["category", *(f"{KIND_TITLES[kind].lower()} AP" for kind in kinds)]
    first = next((kind for kind in kinds if best[kind]), None)
    columns += ["best score", "best F1"] if first else []
    columns += ["objects"] if numbers is not None else []
    columns += ["detections", f"score ≥ {content.min_score:g}"]
    rows = []
    for category in content.categories:
        name = f'<button type="button" class="link" data-open="{category.id}">{escape(category.name)}</button>'
        row = [Cell(name, category.name, markup=True)]
        row += [number_cell(scores.get(category.id, {}).get(kind), bar=True) for kind in kinds]
        if first:
            known = best[first].get(category.id)
            row += [number_cell(known.best.score if known else None, 2), number_cell(known.best.f1 if known else None)]
        row += [count_cell(category.objects)] if numbers is not None else []
        rows.append([*row, count_cell(category.detections), count_cell(category.confident)])
    table = sortable_table("by-category", "Categories", columns, rows)
    box = ""
    if len(rows) >= _FILTER_FROM:
        box = (
            '<label class="filter scripted">Show only <input type="search" data-filter="by-category" '
            'placeholder="part of a name" autocomplete="off"></label>'
        )
    note = '<p class="note scripted">A name opens the category; a heading sorts.</p>'
    return f'{note}{box}{table}<div id="category" aria-live="polite"></div>'


def _by_category(content: ReportContent, kind: str) -> dict[int, CategoryDetails]:
    known = content.details.kinds.get(kind) if content.details else None
    return {category.id: category for category in known.categories} if known else {}


def category_facts(content: ReportContent) -> list[dict[str, Any]]:
    """What the drill-down of each category shows, for the script: texts, and paths of its curves."""
    kinds = list(content.details.kinds) if content.details else []
    known = {kind: _by_category(content, kind) for kind in kinds}
    return [
        {
            "id": category.id,
            "name": category.name,
            "facts": _count_facts(category, content.min_score),
            "kinds": {kind: _kind_facts(known[kind][category.id]) for kind in kinds if category.id in known[kind]},
        }
        for category in content.categories
    ]


def _count_facts(category: CategoryCount, min_score: float) -> list[tuple[str, str]]:
    facts = [] if category.objects is None else [("objects", f"{category.objects:,}")]
    facts.append(("detections", f"{category.detections:,}"))
    facts.append((f"score ≥ {min_score:g}", f"{category.confident:,} in {category.images:,} images"))
    return facts


def _kind_facts(category: CategoryDetails) -> dict[str, Any]:
    sizes = ", ".join(f"{size} {value:.3f}" for size, value in category.ap_per_size.items() if value != -1)
    facts = [("AP", "–" if category.ap == -1 else f"{category.ap:.3f}"), ("by size", sizes or "–")]
    best = category.best
    if best.score != -1:
        text = f"{best.score:.2f} (precision {best.precision:.2f}, recall {best.recall:.2f}, F1 {best.f1:.2f})"
        facts.append(("best score threshold", text))
    curves = [curve_path(_points(curve)) for curve in category.curves]
    return {"facts": facts, "curves": curves}


def category_template(content: ReportContent) -> str:
    """The empty drill-down that the script fills."""
    kinds = list(content.details.kinds) if content.details else []
    blocks = "".join(
        f'<div class="kind" data-kind="{kind}"><h4>{KIND_TITLES[kind]}</h4><dl class="facts"></dl>'
        f"{curve_frame(('IoU 0.50', 'IoU 0.75'), 'Precision over recall')}</div>"
        for kind in kinds
    )
    return (
        '<template id="category-template"><div class="drill"><div class="bar"><h3 tabindex="-1"></h3>'
        '<button type="button" data-do="close-category" aria-label="Close the category">✕</button></div>'
        f'<dl class="facts"></dl><div class="charts">{blocks}</div><div class="cards"></div></div></template>'
    )
