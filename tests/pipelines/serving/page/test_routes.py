"""The page's files over HTTP: what is served, to whom, and that nothing in them comes from elsewhere."""

import io
import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from email.message import Message
from html.parser import HTMLParser
from urllib.parse import urljoin

import pytest
from PIL import Image

from pipelines.serving.config import ServeConfig
from pipelines.serving.guarded import guarded
from tests.pipelines.serving.page.page_server import running


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with running(guarded({}, ServeConfig()).gate) as url:
        yield url


def fetched(url: str, **headers: str) -> tuple[int, Message, bytes]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


class Tags(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_every_file_that_is_named_is_there(address: str) -> None:
    status, _, html = fetched(address)
    assert status == 200
    wanted = {str(a[name]) for _, a in Tags(html.decode()).tags for name in ("src", "href") if name in a}
    seen: set[str] = set()
    while wanted:
        name = wanted.pop()
        if name.startswith("#") or name in {"docs", *seen}:
            continue
        seen.add(name)
        status, headers, content = fetched(address + name)
        assert status == 200, name
        assert headers["content-type"].split(";")[0] in {"text/css", "text/javascript", "image/svg+xml"}
        imports = re.findall(r'from "(\./[\w.-]+)"', content.decode())
        wanted |= {urljoin(name, one) for one in imports}
    assert {"page/main.js", "page/rle.js", "page/theme.css", "page/icon.svg"} <= seen


def test_nothing_comes_from_elsewhere_or_stands_in_the_page(address: str) -> None:
    html = fetched(address)[2].decode()
    tags = Tags(html).tags
    assert not [
        tag for tag, attributes in tags if "style" in attributes or any(name.startswith("on") for name in attributes)
    ]
    assert not [tag for tag, attributes in tags if tag == "style" or (tag == "script" and "src" not in attributes)]
    assert not re.search(r"https?://", html)
    for name in {str(a[key]) for _, a in tags for key in ("src", "href") if str(a.get(key)).startswith("page/")}:
        text = fetched(address + name)[2].decode()
        assert set(re.findall(r"https?://[\w./-]+", text)) <= {"http://www.w3.org/2000/svg"}, name
        assert "innerHTML" not in text


def test_headers(address: str) -> None:
    for name in ("", "page/main.js", "page/facts.json", "page/examples/2.jpg"):
        _, headers, _ = fetched(address + name)
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; ")
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert len(headers.get_all("content-security-policy") or []) == 1
        assert headers["cache-control"] == "no-cache"


def test_a_file_that_is_known_is_not_sent_again(address: str) -> None:
    _, headers, _ = fetched(f"{address}page/main.js")
    status, _, content = fetched(f"{address}page/main.js", **{"If-None-Match": headers["etag"]})
    assert (status, content) == (304, b"")


@pytest.mark.parametrize(
    "name",
    [
        "page/page.py",
        "page/__init__.py",
        "page/nothing.js",
        "page/..%2fpage.py",
        "page/%2e%2e/%2e%2e/pyproject.toml",
        "page/examples/1.jpg",
        "page/examples/-2.jpg",
        "page/examples/99999999999999999999.jpg",
        "page/",
    ],
)
def test_nothing_else_is_served(address: str, name: str) -> None:
    assert fetched(address + name)[0] == 404


def test_examples_are_pictures(address: str) -> None:
    facts = json.loads(fetched(f"{address}page/facts.json")[2])
    assert len(facts["keypoints"]) == 17
    assert max(max(limb) for limb in facts["skeleton"]) == 17
    assert len(facts["examples"]) == 4
    for example in facts["examples"]:
        _, headers, content = fetched(address + example["address"])
        assert headers["content-type"] == "image/jpeg"
        assert min(Image.open(io.BytesIO(content)).size) >= 420
