"""Images in tar files (WebDataset's shards): each is named by where its bytes lie, and read alone.

    s3://bucket/shards/000.tar#offset=1536&length=20480&name=cat/0001.jpg

An image's name in the shard is quoted as in a URI.
"""

import io
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import quote, unquote

from maskrcnn_core.data.files import uri_of
from pipelines import storage
from pipelines.images.parts import BATCH_ROWS, IMAGE_EXTENSIONS, Entries, Part

TAR_EXTENSION = ".tar"

_MEMBER = re.compile(
    r"(?P<shard>.+)#offset=(?P<offset>\d{1,18})&length=(?P<length>\d{1,18})&name=(?P<name>[^#]*)", re.S
)

# Headers are read in pieces of this size: with images that are smaller the whole shard comes along, others are passed.
_READ_BYTES = 1 << 20


@dataclass(frozen=True)
class Member:
    """An image in a shard.

    Attributes:
        shard: path or uri of the tar file.
        offset, length: of its bytes there.
        name: in the shard.
    """

    shard: str
    offset: int
    length: int
    name: str

    @property
    def uri(self) -> str:
        """Its name in manifests and rows."""
        name = quote(self.name.encode("utf-8", "surrogateescape"))
        return f"{self.shard}#offset={self.offset}&length={self.length}&name={name}"


def member_of(uri: str) -> Member | None:
    """The image in a shard that a uri names; None = it names something else."""
    match = _MEMBER.fullmatch(uri) if "#offset=" in uri else None
    if match is None:
        return None
    return Member(
        match["shard"], int(match["offset"]), int(match["length"]), unquote(match["name"], errors="surrogateescape")
    )


def tar_entries(part: Part) -> Iterator[Entries]:
    """The images of one shard, at most some ten thousand at a time.

    A shard that is torn, or no tar file, gives the images before its tear, and its own name, whose row says so.

    Raises:
        StorageError: it cannot be opened.
    """
    shard = uri_of(part.path) if storage.is_local(part.path) else part.path
    found, others = Entries([], sizes=[]), 0
    try:
        for member in _members(part.path, shard):
            if not member.name.lower().endswith(IMAGE_EXTENSIONS):
                others += 1
                continue
            found = _with(found, member.uri, member.length)
            if len(found.uris) == BATCH_ROWS:
                yield found
                found = Entries([], sizes=[])
    except tarfile.TarError:
        found = _with(found, shard, None)
    yield Entries(found.uris, sizes=found.sizes, others=others)


def _with(found: Entries, uri: str, size: int | None) -> Entries:
    assert found.sizes is not None
    found.uris.append(uri)
    found.sizes.append(size)
    return found


def _members(path: str, shard: str) -> Iterator[Member]:
    filesystem, place = storage.filesystem_and_path(path)
    with (
        storage.naming(path),
        filesystem.open_input_file(place) as stream,
        io.BufferedReader(stream, _READ_BYTES) as buffered,
        tarfile.open(fileobj=buffered, mode="r:") as tar,
    ):
        for info in tar:
            tar.members = []  # type: ignore[attr-defined]  # which would keep all of them
            if info.isreg() and not info.issparse():
                yield Member(shard, info.offset_data, info.size, info.name)
        buffered.seek(tar.offset)
        if buffered.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # cut between two files
            raise tarfile.ReadError("no mark of the end")
