"""Names from outside stay below the folder, and come back from addresses and XML."""

import posixpath
import re
import xml.etree.ElementTree as ET
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import quoteattr

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskrcnn_core.export.safe_names import address, safe_path, xml_text

HOSTILE = [
    "../../../X.jpg",
    "..",
    "a/../../b.jpg",
    "/etc/passwd",
    "//x.jpg",
    ".",
    "",
    "/",
    "a//b.jpg",
    "C:/x.jpg",
    "C:x.jpg",
    "a\\..\\..\\b.jpg",
    "a\0b.jpg",
    "a\nb.jpg",
    "a\x85b\u2028c.jpg",
    "\x1b[2J.jpg",
    "\ud800.jpg",
    "x" * 300 + ".jpg",
    "é" * 200 + ".jpg",
    "/".join(["d" * 100] * 40) + "/x.jpg",
    "a.txt/b.jpg",
    "a.TXT/b.jpg",
]


def require_safe(path: str) -> None:
    parts = path.split("/")
    assert all(part not in ("", ".", "..") for part in parts)
    assert all(len(part.encode()) <= 240 for part in parts)
    assert len(path.encode()) <= 1300
    assert not posixpath.isabs(path)
    assert not any(one in path for one in "\0\n\r\\\x1b\u2028\x85")
    assert not any(part.casefold().endswith(".txt") for part in parts[:-1])
    assert not any(re.match("[A-Za-z]:", part) for part in parts)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_become_paths_of_their_own(name: str) -> None:
    path = safe_path(name, "one")
    require_safe(path)
    assert path != name
    assert path == safe_path(name, "one") != safe_path(name, "two")
    assert posixpath.splitext(path)[1] == (".jpg" if name.endswith(".jpg") else "")


@pytest.mark.parametrize(
    "name", ["a.jpg", "sub 0/ímage 100.jpg", "a+b & c#1%25.jpg", ".hidden", "...", "a.txt", "日本/写真.png"]
)
def test_good_names_stay(name: str) -> None:
    assert safe_path(name, "any") == name


@given(st.text(max_size=60) | st.text("./\\a:\0\n", max_size=30))
def test_any_text_is_a_path(name: str) -> None:
    require_safe(safe_path(name, name))


@pytest.mark.parametrize("name", ["a+b.jpg", "a&b.jpg", "a#1.jpg", "100%25.jpg", "a b?c=d.jpg", "é/ü.jpg", "a;b=c.jpg"])
def test_a_server_reads_the_same_name_back(name: str) -> None:
    (read,) = parse_qs(urlsplit(address("/data/local-files/?d=photos/", name)).query)["d"]
    assert read == f"photos/{name}"
    web = urlsplit(address("https://host/pictures/", name))
    assert unquote(web.path) == f"/pictures/{name}"
    assert not web.query
    assert not web.fragment
    assert address("s3://bucket/", name) == f"s3://bucket/{name}"


@given(st.text(st.characters(), max_size=20))
def test_any_text_is_xml(text: str) -> None:
    assert ET.fromstring(f"<a b={quoteattr(xml_text(text))}/>").attrib["b"] == xml_text(text)
