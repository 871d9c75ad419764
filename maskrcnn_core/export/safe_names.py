"""Names that come from outside, made fit for what an export writes: paths below its folder, texts of XML, addresses.

A name of an image is whatever a file system, a bucket or a table holds: `..` and absolute paths, NUL and line ends,
parts that are longer than a file system takes. A category's name is any text of a JSON file.
"""

import hashlib
import posixpath
import re
import unicodedata
from urllib.parse import quote

_NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_DRIVE = re.compile(r"^[A-Za-z]:")
_NOT_IN_PATHS = frozenset({"Cc", "Cs", "Zl", "Zp"})  # control characters, halves of characters, ends of lines
_LONGEST_PART = 200  # bytes; file systems take 255, and endings are yet to come
_LONGEST_PATH = 1000
_LABEL_ENDING = ".txt"
_QUOTED = ("http://", "https://", "/")


def safe_path(name: str, identity: str) -> str:
    """A relative path with slashes that stays below the folder it is put in, on any system.

    A name that is one already stays as it is. Any other gets a mark made of `identity`, so that two names do not become
    one; a folder does not end like a label file, which might stand in its place.

    Args:
        name: path of an image, relative to the folder of all images, or not.
        identity: tells the image from all others.

    Returns:
        At least one part, none of them empty, `.` or `..`.
    """
    parts = [_safe_part(part) for part in name.split("/") if part not in ("", ".", "..")] or ["image"]
    folders = [part[:-4] + "_txt" if part.casefold().endswith(_LABEL_ENDING) else part for part in parts[:-1]]
    path = "/".join([*folders, parts[-1]])
    if path == name and len(path.encode()) <= _LONGEST_PATH:
        return path
    mark = hashlib.sha256(identity.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    stem, ending = posixpath.splitext(parts[-1])
    if len(path.encode()) > _LONGEST_PATH:
        folders = []
    return "/".join([*folders, f"{stem}-{mark}{ending}"])


def _safe_part(part: str) -> str:
    kept = "".join("_" if one == "\\" or unicodedata.category(one) in _NOT_IN_PATHS else one for one in part)
    kept = _DRIVE.sub(lambda match: f"{match[0][0]}_", kept)
    if len(kept.encode()) <= _LONGEST_PART:
        return kept
    stem, ending = posixpath.splitext(kept)
    ending = ending if len(ending.encode()) <= 16 else ""
    return stem.encode()[: _LONGEST_PART - len(ending.encode())].decode("utf-8", "ignore") + ending


def xml_text(text: str) -> str:
    """The text with a question mark for every character that XML cannot hold."""
    return _NOT_IN_XML.sub("?", text)


def address(prefix: str, name: str) -> str:
    """`prefix` with the name of an image behind it; quoted where a web server reads it, and not in a bucket's address.

    >>> address("/data/local-files/?d=photos/", "a+b & c.jpg")
    '/data/local-files/?d=photos/a%2Bb%20%26%20c.jpg'
    """
    is_read_by_a_server = prefix.lower().startswith(_QUOTED)
    return prefix + (quote(name, safe="/", errors="surrogatepass") if is_read_by_a_server else name)
