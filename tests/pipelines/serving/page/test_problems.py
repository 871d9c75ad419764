"""What goes wrong is said in words that help, and the page goes on."""

from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Route, expect

from tests.pipelines.serving.page.conftest import Opened
from tests.pipelines.serving.page.page_server import MAX_BYTES
from tests.pipelines.serving.page.test_page import found


def choose(opened: Opened, name: str, content: bytes, kind: str) -> None:
    opened.window.locator("#file").set_input_files({"name": name, "mimeType": kind, "buffer": content})


def expect_refusals(opened: Opened) -> None:
    """The browser itself writes a line about each answer of 400 and more."""
    opened.complaints[:] = [line for line in opened.complaints if "the server responded with a status" not in line]


@pytest.mark.parametrize(
    ("name", "content", "kind", "title", "text"),
    [
        ("notes.txt", b"words", "text/plain", "That is not a picture", "“notes.txt” is of the type text/plain"),
        ("film.mp4", b"\0\0\0", "video/mp4", "That is not a picture", "JPEG, PNG"),
        ("nothing.png", b"", "image/png", "The file is empty", "“nothing.png” has no content"),
        (
            "large.png",
            bytes(MAX_BYTES + 1),
            "image/png",
            "The file is too large",
            "has 2.0 MB; this server takes up to 2.0",
        ),
    ],
)
def test_some_files_are_not_even_sent(
    opened: Opened, name: str, content: bytes, kind: str, title: str, text: str
) -> None:
    choose(opened, name, content, kind)
    said = opened.problem()
    assert title in said
    assert text in said
    assert opened.server.requests == []
    assert opened.focused() == "another"
    opened.window.locator("#dismiss").click()
    assert opened.window.locator("#start").is_visible()


def test_a_damaged_picture(opened: Opened, examples: dict[int, Path]) -> None:
    opened.window.locator("#model").select_option("small")
    choose(opened, "half.jpg", examples[2].read_bytes()[:900], "image/jpeg")
    said = opened.problem()
    assert "The picture cannot be read" in said
    assert "damaged" in said
    choose(opened, "whole.jpg", examples[2].read_bytes(), "image/jpeg")
    opened.answered()
    assert not opened.window.locator("#problem").is_visible()
    expect_refusals(opened)


@pytest.mark.parametrize(
    ("status", "headers", "title", "text"),
    [
        (413, {}, "The picture is too large for this server", "Make it smaller"),
        (415, {}, "That is not a picture the detector can read", "JPEG, PNG"),
        (422, {}, "The picture cannot be read", "JPEG, PNG"),
        (404, {}, "This model is not there any more", "Load the page again"),
        (418, {}, "The server cannot do that", "what it says itself"),
    ],
)
def test_refusals(
    opened: Opened, examples: dict[int, Path], status: int, headers: dict[str, str], title: str, text: str
) -> None:
    opened.server.problem = (status, {"title": "x", "status": status, "detail": "what it says itself"}, headers)
    choose(opened, "picture.jpg", examples[2].read_bytes(), "image/jpeg")
    said = opened.problem()
    assert title in said
    assert text in said
    assert "what it says itself" in said
    assert not opened.window.locator("#again").is_visible()
    expect_refusals(opened)


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_asked_again(opened: Opened, examples: dict[int, Path], status: int) -> None:
    opened.server.problem = (status, {"title": "x", "status": status}, {"retry-after": "3"})
    choose(opened, "picture.jpg", examples[2].read_bytes(), "image/jpeg")
    assert "Try again in 3 seconds." in opened.problem()
    assert opened.focused() == "again"
    opened.server.problem = None
    opened.window.keyboard.press("Enter")
    opened.answered()
    assert len(opened.server.requests) == 2
    expect_refusals(opened)


def test_an_answer_that_is_no_json(opened: Opened, examples: dict[int, Path]) -> None:
    def answer(route: Route) -> None:
        route.fulfill(status=502, body="<html>Bad gateway</html>")

    opened.window.route("**/v1/detect*", answer)
    choose(opened, "picture.jpg", examples[2].read_bytes(), "image/jpeg")
    said = opened.problem()
    assert "The server is not ready" in said
    assert "html" not in said
    expect_refusals(opened)


def test_a_server_that_is_gone(opened: Opened, examples: dict[int, Path]) -> None:
    opened.window.route("**/v1/detect*", lambda route: route.abort("connectionrefused"))
    choose(opened, "picture.jpg", examples[2].read_bytes(), "image/jpeg")
    assert "The server cannot be reached" in opened.problem()
    opened.window.unroute("**/v1/detect*")
    opened.window.locator("#again").click()
    opened.answered()
    opened.complaints[:] = [line for line in opened.complaints if "ERR_CONNECTION_REFUSED" not in line]


def test_a_server_that_asks_for_a_key(opened: Opened, examples: dict[int, Path]) -> None:
    opened.server.key = "secret"
    opened.window.reload()
    assert "This server asks for a key" in opened.problem()
    assert opened.focused() == "key"
    opened.window.keyboard.type("wrong")
    opened.window.keyboard.press("Enter")
    expect(opened.window.locator("#key-form")).to_be_visible()
    opened.window.locator("#key").fill("secret")
    opened.window.keyboard.press("Enter")
    opened.window.wait_for_selector("#model:not([disabled])")
    opened.choose(examples[2])
    opened.open()  # the key is kept for this tab
    assert not opened.window.locator("#problem").is_visible()
    expect_refusals(opened)


def test_a_new_picture_takes_the_place_of_one_that_is_waited_for(opened: Opened, examples: dict[int, Path]) -> None:
    opened.server.delay = 1.0
    choose(opened, "first.jpg", examples[2].read_bytes(), "image/jpeg")
    expect(opened.window.locator("#busy")).to_be_visible()
    opened.server.delay = 0.0
    choose(opened, "second.jpg", examples[3].read_bytes(), "image/jpeg")
    opened.answered()
    opened.window.wait_for_timeout(1200)
    assert opened.window.locator("#about").inner_text().startswith("second.jpg")
    assert opened.window.locator(".view").count() == 1


def test_what_is_waited_for_can_be_cancelled(opened: Opened, examples: dict[int, Path]) -> None:
    opened.server.delay = 1.0
    choose(opened, "first.jpg", examples[2].read_bytes(), "image/jpeg")
    opened.window.locator("#cancel").click()
    assert opened.focused() == "choose"
    opened.window.wait_for_timeout(1200)
    assert opened.window.locator("#start").is_visible()
    assert not opened.window.locator("#panel").is_visible()
    assert not opened.window.locator("#problem").is_visible()


def test_a_picture_that_only_the_server_can_read(opened: Opened, examples: dict[int, Path]) -> None:
    """Masks are shown without the picture."""
    file = examples[2].with_suffix(".tif")
    with Image.open(examples[2]) as picture:
        picture.save(file)
    opened.window.locator("#model").select_option("small")
    choose(opened, "scan.tif", file.read_bytes(), "image/tiff")
    opened.answered()
    size = opened.window.locator("canvas.masks").evaluate("canvas => [canvas.width, canvas.height]")
    assert tuple(size) == picture.size
    assert "cannot show this kind of picture" in opened.window.locator("#live").inner_text()


def test_a_picture_that_is_turned_by_its_exif_orientation(opened: Opened, examples: dict[int, Path]) -> None:
    file = examples[2].with_name("turned.jpg")
    with Image.open(examples[2]) as picture:
        exif = picture.getexif()
        exif[0x0112] = 6  # turn by 90 degrees to see it
        picture.save(file, exif=exif)
    opened.window.locator("#model").select_option("small")
    opened.choose(file)
    size = opened.window.locator("canvas.picture").evaluate("canvas => [canvas.width, canvas.height]")
    assert tuple(size) == picture.size[::-1]


def test_a_broken_mask_is_left_out(opened: Opened, examples: dict[int, Path]) -> None:
    record = found(opened, examples[2])
    first = {**record["detections"][0], "segmentation": {"size": [4, 4], "counts": "\t~~"}}
    broken = {**record, "detections": [first, *record["detections"][1:]], "timing": {}}
    opened.window.route("**/v1/detect*", lambda route: route.fulfill(json=broken))
    opened.choose(examples[2])
    assert opened.rows().count() > 1
    assert "1 mask could not be read" in opened.window.locator("#live").inner_text()


def test_names_stay_text(opened: Opened, examples: dict[int, Path]) -> None:
    evil = "<img src=x onerror=alert(1)>\"'&"
    record = found(opened, examples[2])
    detections = [{**one, "category": evil} for one in record["detections"]]
    answer = {**record, "detections": detections, "timing": {}}
    opened.window.route("**/v1/detect*", lambda route: route.fulfill(json=answer))
    choose(opened, f"{evil}.jpg", examples[2].read_bytes(), "image/jpeg")
    opened.answered()
    opened.rows().first.click()
    assert evil in opened.rows().first.inner_text()
    assert evil in opened.window.locator("#about").inner_text()
    assert opened.window.locator("#panel img").count() == 0
