"""The typed configuration of reading and writing files on S3."""

from dataclasses import dataclass

from maskrcnn_core.config.checks import require, require_positive, require_typed


@dataclass(frozen=True)
class StorageConfig:
    """S3. Credentials come from where AWS tools take them: AWS_ACCESS_KEY_ID and its like, ~/.aws, instance roles."""

    endpoint_url: str = ""
    """Address of an S3-compatible server, such as http://minio:9000; empty = AWS_ENDPOINT_URL, or AWS itself."""
    region: str = ""
    """AWS region; empty = AWS_REGION, or the bucket's own."""
    anonymous: bool = False
    """Do not sign requests (public buckets)."""
    max_attempts: int = 10
    """Tries of one request that was throttled, dropped or timed out, with growing pauses."""
    connect_timeout: float = 10.0
    """Limit of one connection attempt, seconds."""
    request_timeout: float = 60.0
    """Limit of the wait for an answer, seconds."""

    def __post_init__(self) -> None:
        require_typed("storage", self)
        for name in ("max_attempts", "connect_timeout", "request_timeout"):
            require_positive(f"storage.{name}", getattr(self, name))
        require(
            not self.endpoint_url or self.endpoint_url.startswith(("http://", "https://")),
            "storage.endpoint_url",
            self.endpoint_url,
            "http://HOST:PORT or https://HOST",
        )
