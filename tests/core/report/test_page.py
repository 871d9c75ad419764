"""The page as text: what is on it, and that nothing a user named can break out of its place."""

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from maskrcnn_core.report.content import FailedRow, Histogram, ReportContent
from maskrcnn_core.report.page import page_html
from tests.core.report.synthetic import content, example

EVIL = "</script><img src=x onerror=\"alert('1')\">&'<b>"
VOID = {"meta", "link", "img", "input", "br"}


class Reader(HTMLParser):
    """Checks that elements close in order, and keeps tags, texts and attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    return reader


def empty() -> ReportContent:
    nothing = Histogram((0.0, 1.0), (("detections", (0,)),))
    return ReportContent("Label report", "nothing", {}, (), 0, 0.5, 0.5, (), nothing, nothing, nothing)


def test_sections_follow_from_what_there_is() -> None:
    def sections(page: ReportContent) -> list[str | None]:
        return [attributes["id"] for tag, attributes in read(page_html(page)).tags if tag == "section"]

    full = content(["cat", "dog"])
    assert sections(full) == ["numbers", "curves", "errors", "categories", "pictures", "images", "made"]
    assert sections(replace(full, details=None)) == ["numbers", "categories", "pictures", "images", "made"]
    assert sections(replace(full, details=None, numbers=None, examples=())) == [
        "numbers",
        "curves",
        "categories",
        "images",
        "made",
    ]
    assert "numbers" in sections(empty())


def test_headline_numbers() -> None:
    texts = read(page_html(content(["cat", "dog"]))).texts
    assert texts[texts.index("Box AP") + 1] == "0.383"
    assert "AP50 0.756" in texts
    assert any(text.startswith("95 %: 0.4") for text in texts)
    assert {"boundary", "0.321", "LVIS", "APr", "0.045"} <= set(texts)
    assert texts[texts.index("Images") + 1 :].index("1,197") >= 0  # of the tile; the navigation says Images as well
    assert "7 failed" in texts
    assert "–" in texts  # a number that is not defined
    assert (
        "3 of 1,200 annotated images have no label row and 7 failed; they count as images in which nothing was found."
        in texts
    )


def test_what_the_user_named_stays_text() -> None:
    page = replace(
        content([EVIL, "dog"]),
        title=EVIL,
        subtitle=EVIL,
        examples=(example("right", 1, EVIL, source=EVIL),),
        failures=(FailedRow(EVIL, "missing", EVIL),),
        made={EVIL: EVIL},
        left_out=EVIL,
    )
    one = (example("right", 1, "cat"),)
    plain = page_html(replace(content(["cat", "dog"]), examples=one, left_out="x", made={"command": "x"}))
    evil = read(page_html(page))
    assert [tag for tag, _ in evil.tags] == [tag for tag, _ in read(plain).tags]  # not one element more
    assert all(not name.startswith("on") for _, attributes in evil.tags for name in attributes)
    assert evil.texts.count(EVIL) >= 6
    facts = re.search(r'<script type="application/json" id="facts">(.*?)</script>', page_html(page), re.DOTALL)
    assert facts is not None
    assert json.loads(facts[1])[0]["name"] == EVIL


def test_nothing_is_fetched() -> None:
    page = page_html(content(["cat", "dog"]))
    tags = read(page).tags
    places = [str(attributes[name]) for _, attributes in tags for name in ("src", "href") if name in attributes]
    assert all(place.startswith(("data:", "#")) for place in places)
    assert not re.search(r"url\(|@import|https?://", page)
    policy = next(a["content"] for tag, a in tags if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy")
    script = page[page.rindex("<script>") + len("<script>") : page.rindex("</script>")]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy is not None
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy


def test_many_categories_get_a_filter_and_the_confusions_as_a_list() -> None:
    few, many = (page_html(content([f"kind {n}" for n in range(count)])) for count in (5, 40))
    assert 'class="matrix"' in few
    assert 'class="matrix"' not in many
    assert "confused-bbox" in many
    assert ("data-filter=" in few, "data-filter=" in many) == (False, True)


def test_an_empty_run_has_a_page() -> None:
    texts = read(page_html(empty())).texts
    assert "none failed" in texts


@pytest.mark.parametrize("count", [1, 3])
def test_tables_have_as_many_cells_as_headings(count: int) -> None:
    page = page_html(content([f"kind {n}" for n in range(count)]))
    for table in re.findall(r"<table.*?</table>", page, re.DOTALL):
        rows = [len(re.findall(r"<t[hd][ >]", row)) for row in re.findall(r"<tr>.*?</tr>", table, re.DOTALL)]
        assert len(set(rows)) == 1
