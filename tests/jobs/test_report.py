"""The commands that write reports, and the page in a real browser."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pyarrow.parquet as pq
import pytest

from jobs import evaluate, report
from maskrcnn_core.records.labels import record_from_row, record_schema, records_to_table, schema_categories
from maskrcnn_core.report.settings import PicturesConfig
from tests.browser import open_chromium
from tests.pipelines.label_runs import write_label_run

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

SMALL = ["--pictures.per_gallery", "3", "--pictures.side", "96"]
EVIL = "<img src=x onerror=alert(1)>\"'&.jpg"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Label run, annotation file, images; one image has a name that would be a script if it were not escaped."""
    run, annotations, images = write_label_run(tmp_path_factory.mktemp("labels"))
    document = json.loads(annotations.read_text())
    first = images / document["images"][0]["file_name"]
    shutil.move(first, images / EVIL)
    document["images"][0]["file_name"] = EVIL
    annotations.write_text(json.dumps(document))
    part = run / "labels" / "part-0.parquet"
    table = pq.read_table(part)
    uris = [uri.replace(first.name, EVIL) for uri in table.column("uri").to_pylist()]
    records = [record_from_row(row) for row in table.to_pylist()]
    schema = record_schema(schema_categories(table.schema))
    ids = table.column("image_id").to_pylist()
    pq.write_table(records_to_table(ids, uris, records, "fingerprint", schema), part)
    return run, annotations, images


@pytest.fixture(scope="module")
def page(files: tuple[Path, Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    arguments = ["--labels", str(files[0]), "--annotations", str(files[1]), "--report", str(folder)]
    assert evaluate.main([*arguments, *SMALL, "--evaluate.bootstrap_samples", "5"]) == 0
    return folder / "index.html"


def test_evaluate_says_where_the_report_is(
    files: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--labels", str(files[0]), "--annotations", str(files[1]), "--report", str(tmp_path / "page")]
    assert evaluate.main([*arguments, *SMALL, "--evaluate.bootstrap_samples", "5"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"Report: {tmp_path / 'page' / 'index.html'} (0.")
    assert last.endswith(" MB; 7 images, 12 examples); open it in a browser")
    assert f"--report {tmp_path / 'page'}" in (tmp_path / "page" / "index.html").read_text()


def test_report_without_ground_truth(
    files: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--labels", str(files[0]), "--images", str(files[2]), "--output", str(tmp_path / "page")]
    assert report.main([*arguments, *SMALL]) == 0
    assert capsys.readouterr().out.startswith(f"Report: {tmp_path / 'page' / 'index.html'} (")
    assert EVIL not in (tmp_path / "page" / "index.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--labels", "{tmp}/none", "--output", "{tmp}/page"], "none: no such file or folder"),
        (["--labels", "{run}", "--output", "{val}"], "is a file; expected the name of a folder"),
        (["--labels", "{run}"], "missing --output"),
        (["--labels", "{run}", "--output", "{tmp}", "--pictures.side", "0"], "pictures.side: got 0, expected"),
        (["--labels", "{run}", "--output", "{tmp}", "--pictures.per_gallery", "-1"], "pictures.per_gallery: got -1"),
        (["--labels", "{run}", "--output", "{tmp}", "--pictures.min_score", "2"], "pictures.min_score: got 2"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str],
    expected: str,
    files: tuple[Path, Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert report.main([text.format(tmp=tmp_path, run=files[0], val=files[1]) for text in arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert expected in err


def test_results_of_other_systems_have_no_report(
    files: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--labels", "results.json", "--annotations", str(files[1]), "--report", str(tmp_path)]
    assert evaluate.main(arguments) == 2
    assert "report: its pictures need label records" in capsys.readouterr().err


def test_pictures_stay_small_by_default() -> None:
    """Four galleries of the largest allowed size stay below 10 megabytes."""
    assert PicturesConfig().max_megabytes <= 9


# ---- in a browser ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    with open_chromium() as opened:
        yield opened


class Opened:
    """The page in a browser window, with everything that it complained about or asked the network for."""

    def __init__(
        self, browser: "Browser", page: Path, width: int = 1280, scheme: Literal["light", "dark"] = "light"
    ) -> None:
        self.context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce"
        )
        self.context.set_default_timeout(60_000)
        self.window = self.context.new_page()
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.window.on("console", lambda message: self.complaints.append(message.text))
        self.window.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.window.on("dialog", lambda dialog: self.complaints.append(dialog.message))
        self.window.on("request", lambda request: self.requests.append(request.url))
        self.window.goto(page.as_uri())

    def focused(self, what: str) -> object:
        return self.window.evaluate(f"document.activeElement.{what}")


@pytest.fixture
def opened(browser: "Browser", page: Path) -> Iterator[Opened]:
    one = Opened(browser, page)
    yield one
    one.context.close()
    assert one.complaints == []


def column(window: "Page", table: str, number: int) -> list[str]:
    return window.locator(f"#{table} tbody tr > :nth-child({number})").all_inner_texts()


@pytest.mark.slow
def test_nothing_but_the_file_is_loaded(opened: Opened, page: Path) -> None:
    opened.window.wait_for_load_state("networkidle")
    assert [url for url in opened.requests if not url.startswith("data:")] == [page.as_uri()]
    assert opened.window.locator("img").count() == 24
    assert opened.window.evaluate("[...document.images].every(image => image.naturalWidth > 0)")


@pytest.mark.slow
def test_tables_sort_by_mouse_and_keyboard(opened: Opened) -> None:
    heads = opened.window.locator("#by-category thead th")
    number = next(n for n, text in enumerate(heads.all_inner_texts(), 1) if text.startswith("objects"))
    heads.nth(number - 1).locator("button").click()
    values = [int(text) for text in column(opened.window, "by-category", number)]
    assert values == sorted(values, reverse=True)
    assert len(set(values)) > 1
    assert heads.nth(number - 1).get_attribute("aria-sort") == "descending"
    opened.window.keyboard.press("Enter")
    assert [int(text) for text in column(opened.window, "by-category", number)] == sorted(values)
    assert heads.nth(number - 1).get_attribute("aria-sort") == "ascending"
    heads.nth(0).locator("button").click()
    names = column(opened.window, "by-category", 1)
    assert names == sorted(names)
    assert heads.nth(number - 1).get_attribute("aria-sort") == "none"


@pytest.mark.slow
def test_gallery_opens_goes_on_and_closes_by_keyboard(opened: Opened) -> None:
    window = opened.window
    tabs = window.locator('[role="tab"]')
    tabs.nth(0).focus()
    window.keyboard.press("ArrowRight")
    assert tabs.nth(1).get_attribute("aria-selected") == "true"
    assert window.locator("#gallery-missed").is_visible()
    assert not window.locator("#gallery-right").is_visible()
    cards = window.locator("#gallery-missed .card")
    cards.nth(0).focus()
    window.keyboard.press("Enter")
    box = window.locator("#lightbox")
    assert box.is_visible()
    assert box.locator("img").count() == 2
    assert "1 of 3" in box.inner_text()
    window.keyboard.press("ArrowRight")
    assert "2 of 3" in box.inner_text()
    window.keyboard.press("ArrowLeft")
    window.keyboard.press("ArrowLeft")
    assert "3 of 3" in box.inner_text()
    window.keyboard.press("Escape")
    assert not box.is_visible()
    # A dialog tells that it closed, and the page puts the focus back, a moment later.
    window.wait_for_function("document.activeElement === document.querySelectorAll('#gallery-missed .card')[2]")


@pytest.mark.slow
def test_category_opens_and_closes_by_keyboard(opened: Opened) -> None:
    window = opened.window
    link = window.locator("[data-open]").first
    name = link.inner_text()
    link.focus()
    window.keyboard.press("Enter")
    drill = window.locator("#category .drill")
    assert drill.locator("h3").inner_text() == name
    assert opened.focused("textContent") == name
    assert "detections" in drill.inner_text()
    window.keyboard.press("Escape")
    assert drill.count() == 0
    assert opened.focused("textContent") == name


@pytest.mark.slow
def test_themes(opened: Opened, browser: "Browser", page: Path) -> None:
    def paper(window: "Page") -> str:
        return window.evaluate("getComputedStyle(document.body).backgroundColor")

    light = paper(opened.window)
    opened.window.locator("#theme").click()
    dark = paper(opened.window)
    assert light != dark
    opened.window.reload()
    assert paper(opened.window) == dark  # remembered
    other = Opened(browser, page, scheme="dark")
    assert paper(other.window) == dark
    other.window.locator("#theme").click()
    assert paper(other.window) == light
    other.context.close()


@pytest.mark.slow
def test_a_phone_scrolls_in_one_direction_only(browser: "Browser", page: Path) -> None:
    phone = Opened(browser, page, width=375)
    widths = "[document.documentElement.scrollWidth, document.body.scrollWidth]"
    assert max(phone.window.evaluate(widths)) <= 375
    phone.window.locator("[data-open]").first.click()
    assert max(phone.window.evaluate(widths)) <= 375
    phone.window.locator("#gallery-right .card").first.click()
    box = phone.window.locator("#lightbox").bounding_box()
    assert box is not None
    assert box["width"] <= 375
    assert phone.window.evaluate("document.querySelector('#lightbox').scrollWidth") <= 375
    phone.context.close()
    assert phone.complaints == []
