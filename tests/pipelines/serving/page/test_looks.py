"""Sizes, themes, and what axe says of accessibility."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest
from playwright.sync_api import expect

from tests.pipelines.serving.page.conftest import Opened
from tests.pipelines.serving.page.page_server import PageServer

if TYPE_CHECKING:
    from playwright.sync_api import Browser

Scheme = Literal["light", "dark"]
Open = Callable[..., Opened]
PHONE, DESKTOP = (375, 760), (1280, 860)


@pytest.fixture
def opening(browser: "Browser", served: tuple[PageServer, str]) -> Iterator[Open]:
    windows: list[Opened] = []

    def open_page(size: tuple[int, int] = DESKTOP, scheme: Scheme = "light") -> Opened:
        windows.append(Opened(browser, *served, size=size, scheme=scheme, touch=size == PHONE))
        return windows[-1]

    yield open_page
    for one in windows:
        one.context.close()
    served[0].problem = None
    assert [line for one in windows for line in one.complaints if "responded with a status of 503" not in line] == []


def paper(opened: Opened) -> str:
    return opened.window.evaluate("getComputedStyle(document.body).backgroundColor")


def test_themes(opening: Open) -> None:
    light, dark = opening(), opening(scheme="dark")
    colours = paper(light), paper(dark)
    assert colours[0] != colours[1]
    light.window.locator("#theme").click()
    assert paper(light) == colours[1]
    light.open()
    assert paper(light) == colours[1]  # remembered
    assert light.window.locator("#theme").get_attribute("aria-label") == "Switch to the light theme"
    dark.window.locator("#theme").click()
    assert paper(dark) == colours[0]


def test_a_phone_scrolls_in_one_direction_only(opening: Open, examples: dict[int, Path]) -> None:
    phone = opening(PHONE)
    widths = "[document.documentElement.scrollWidth, document.body.scrollWidth]"
    assert max(phone.window.evaluate(widths)) <= PHONE[0]
    phone.choose(examples[2])
    assert max(phone.window.evaluate(widths)) <= PHONE[0]
    phone.window.locator("#compare").tap()
    expect(phone.window.locator("#timings .bar")).to_have_count(2)
    assert max(phone.window.evaluate(widths)) <= PHONE[0]
    stage = phone.window.locator("#stage").bounding_box()
    assert stage is not None
    assert 0.3 * PHONE[1] < stage["height"] < 0.6 * PHONE[1]
    phone.window.evaluate("scrollTo(0, document.body.scrollHeight)")
    stage = phone.window.locator("#stage").bounding_box()
    assert stage is not None
    assert stage["y"] == 0  # the picture stays in sight below the controls


def test_a_finger_chooses(opening: Open, examples: dict[int, Path]) -> None:
    phone = opening(PHONE)
    phone.choose(examples[2])
    phone.rows().first.tap()
    assert phone.rows().first.get_attribute("aria-selected") == "true"
    small = "[...document.querySelectorAll('button, select, .chip, [role=option]')].filter(one => one.offsetParent)"
    sizes = phone.window.evaluate(
        f"{small}.map(one => one.getBoundingClientRect()).map(one => [one.width, one.height])"
    )
    assert min(min(size) for size in sizes) >= 24  # WCAG 2.2, 2.5.8


def test_two_fingers_zoom(opening: Open, examples: dict[int, Path]) -> None:
    phone = opening(PHONE)
    phone.choose(examples[2])
    picture = phone.window.locator("canvas.picture")
    before, view = picture.bounding_box(), phone.window.locator(".view").bounding_box()
    assert before is not None
    assert view is not None
    x, y = view["x"] + view["width"] / 2, view["y"] + view["height"] / 2
    protocol = phone.context.new_cdp_session(phone.window)

    def touch(kind: str, apart: float | None) -> None:
        points = [] if apart is None else [{"x": x + side * apart, "y": y, "id": id} for id, side in ((1, -1), (2, 1))]
        protocol.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    touch("touchStart", 30)
    for apart in (40, 50, 60):
        touch("touchMove", apart)
    touch("touchEnd", None)
    phone.painted()
    after = picture.bounding_box()
    assert after is not None
    assert after["width"] == pytest.approx(2 * before["width"], rel=0.05)
    assert phone.window.locator('[aria-selected="true"]').count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_axe_finds_nothing(opening: Open, examples: dict[int, Path], size: tuple[int, int], scheme: Scheme) -> None:
    """In each state of the page: the start, an answer, a chosen instance, two models, a problem."""
    playwright = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is missing")
    page = opening(size, scheme)
    # The page's policy lets no other script in; this one is put there by the browser's own protocol.
    axe = playwright.Axe()

    def check(state: str) -> None:
        response = axe.run(page.window, options={"resultTypes": ["violations"]}).response
        assert len(response["passes"]) > 10, "axe did not look at the page"
        found = response["violations"]
        said = [(one["id"], [node["html"][:120] + node["failureSummary"] for node in one["nodes"]]) for one in found]
        assert said == [], state

    check("start")
    page.choose(examples[2])
    check("answer")
    page.rows().nth(1).click()
    page.window.locator("#categories .chip").first.click()
    check("chosen")
    page.window.locator("#compare").click()
    expect(page.window.locator("#timings .bar")).to_have_count(2)
    check("two models")
    page.server.problem = (503, {"title": "x", "detail": "full"}, {"retry-after": "3"})
    page.window.locator("#compare").click()
    page.problem()
    check("problem")
