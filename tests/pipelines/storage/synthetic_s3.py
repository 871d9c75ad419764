"""An S3 bucket without a server: `list_objects_v2` over sorted keys, which may be generated as they are asked for."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import Any


class NumberedKeys(Sequence[str]):
    """`000000000000.jpg`, `000000000001.jpg`, ... below a prefix, as COCO names its images; none of them is held."""

    def __init__(self, prefix: str, count: int) -> None:
        self._prefix, self._count = prefix, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        numbers = range(self._count)[index]
        if isinstance(numbers, range):
            return [f"{self._prefix}{number:012d}.jpg" for number in numbers]
        return f"{self._prefix}{numbers:012d}.jpg"


class SyntheticS3:
    """The listing call of S3's client. Counts `requests`.

    Args:
        keys: in the order of their UTF-8 bytes.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        self._keys = keys
        self.requests = 0

    def list_objects_v2(
        self, *, Bucket: str, Prefix: str = "", StartAfter: str = "", MaxKeys: int = 1000
    ) -> dict[str, Any]:
        """Keys with the prefix that come after another, at most 1,000 of them."""
        self.requests += 1
        order = str.encode
        first = max(
            bisect_left(self._keys, Prefix.encode(), key=order),
            bisect_right(self._keys, StartAfter.encode(), key=order),
        )
        page = self._keys[first : first + min(MaxKeys, 1000) + 1]
        page = [key for key in page if key.startswith(Prefix)]
        found = page[: min(MaxKeys, 1000)]
        contents = [{"Key": key, "Size": 3, "ETag": '"e"'} for key in found]
        return {"Contents": contents, "KeyCount": len(found), "IsTruncated": len(page) > len(found)}
