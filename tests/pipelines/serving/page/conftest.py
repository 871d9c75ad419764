"""One server and one browser for all tests of the page."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from maskrcnn_core.data.generated.pictures import CATEGORIES
from pipelines.serving.page.page import page_routes
from tests.browser import open_chromium
from tests.pipelines.serving.function_detectors import knowing_detector, small_detector
from tests.pipelines.serving.page.page_server import (
    PageServer,
    example_contents,
    example_records,
    running,
)

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page


@pytest.fixture(scope="package")
def browser() -> Iterator["Browser"]:
    with open_chromium() as opened:
        yield opened


@pytest.fixture(scope="package")
def examples(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The page's example pictures as files, by number."""
    folder = tmp_path_factory.mktemp("examples")
    files = {}
    for number, content in example_contents(page_routes()).items():
        files[number] = folder / f"example {number}.jpg"
        files[number].write_bytes(content)
    return files


@pytest.fixture(scope="package")
def served(browser: "Browser", examples: dict[int, Path]) -> Iterator[tuple[PageServer, str]]:
    """Needs the browser first: without one, nothing is set up in vain."""
    known = example_records({number: file.read_bytes() for number, file in examples.items()})
    server = PageServer({"drawn": knowing_detector(known, CATEGORIES), "small": small_detector()})
    with running(server) as address:
        yield server, address


class Opened:
    """The page in a window, with everything that it complained about or asked for."""

    def __init__(
        self,
        browser: "Browser",
        server: PageServer,
        address: str,
        *,
        size: tuple[int, int] = (1280, 860),
        scheme: Literal["light", "dark"] = "light",
        touch: bool = False,
    ) -> None:
        self.server, self.address = server, address
        self.context = browser.new_context(
            viewport={"width": size[0], "height": size[1]},
            color_scheme=scheme,
            reduced_motion="reduce",
            has_touch=touch,
            is_mobile=touch,
            accept_downloads=True,
        )
        self.context.set_default_timeout(30_000)
        self.window: Page = self.context.new_page()
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.window.on("console", lambda message: self.complaints.append(message.text))
        self.window.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.window.on("request", lambda request: self.requests.append(request.url))
        self.open()

    def open(self) -> None:
        self.window.goto(self.address)
        self.window.wait_for_selector("#example-list button")
        self.window.wait_for_selector("#model:not([disabled])")

    def choose(self, file: Path) -> None:
        """By the file chooser, until its answer is shown."""
        with self.window.expect_file_chooser() as chooser:
            self.window.locator("#choose, #open").locator("visible=true").last.click()
        chooser.value.set_files(file)
        self.answered()

    def answered(self) -> None:
        self.window.wait_for_selector("#panel:not([hidden])")
        self.window.wait_for_selector("#busy", state="hidden")
        self.painted()

    def painted(self) -> None:
        """Wait for what was asked for before to be on the screen."""
        self.window.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def rows(self) -> "Locator":
        return self.window.locator('[role="option"]')

    def problem(self) -> str:
        self.window.wait_for_selector("#problem:not([hidden])")
        return self.window.locator("#problem").inner_text()

    def pixel(self, canvas: str, x: float, y: float, view: int = 0) -> list[int]:
        """RGBA of a canvas at a point of it."""
        return self.pixels(canvas, view)[int(y), int(x)].tolist()

    def pixels(self, canvas: str, view: int = 0) -> NDArray[np.uint8]:
        """[H, W, 4] RGBA of a canvas."""
        read = """async (canvas) => {
            const blob = await new Promise((done) => canvas.toBlob(done));
            return [...new Uint8Array(await blob.arrayBuffer())];
        }"""
        encoded = bytes(self.window.locator(f".view canvas.{canvas}").nth(view).evaluate(read))
        return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGBA"))

    def on_screen(self, x: float, y: float, view: int = 0) -> tuple[float, float]:
        """Where a point of the picture is in the window."""
        box = self.window.locator(".view canvas.picture").nth(view).bounding_box()
        width = self.window.locator(".view canvas.picture").nth(view).evaluate("canvas => canvas.width")
        assert box is not None
        scale = box["width"] / width
        return box["x"] + x * scale, box["y"] + y * scale

    def focused(self, what: str = "id") -> Any:
        return self.window.evaluate(f"document.activeElement.{what}")


@pytest.fixture
def opened(browser: "Browser", served: tuple[PageServer, str]) -> Iterator[Opened]:
    """The page; afterwards nothing may have been complained about, nor another host asked."""
    server, address = served
    server.requests.clear()
    one = Opened(browser, server, address)
    yield one
    one.context.close()
    server.problem, server.key, server.delay = None, None, 0.0
    assert one.complaints == []
    assert [url for url in one.requests if not url.startswith((address, "blob:", "data:"))] == []
