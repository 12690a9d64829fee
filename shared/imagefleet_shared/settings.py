"""Settings that apps and workers share, read once from the environment."""

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class _Settings(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix="IMAGEFLEET_",
        env_ignore_empty=True,
        frozen=True,
        use_attribute_docstrings=True,
    )


class BrokerSettings(_Settings):
    """How to reach Redis, and how long its records live."""

    redis_url: str = Field(default="redis://127.0.0.1:6379/0", repr=False)
    """`redis://[user:password@]host:port/db`, or `rediss://` for TLS."""
    record_ttl_s: int = Field(default=7 * 24 * 3600, ge=60)
    """How long the record of an ended job stays in Redis, seconds."""
    socket_timeout_s: float = Field(default=10, gt=0)
    """Timeout of a Redis call, after which the connection is reopened, seconds."""
    connect_timeout_s: float = Field(default=2, gt=0)
    """Timeout of connecting to Redis, seconds."""


class StorageSettings(_Settings):
    """Where images are stored. Credentials come from the usual AWS variables or roles."""

    storage_url: str = "file:///var/lib/imagefleet/store"
    """`s3://bucket/prefix`, or `file:///directory` where every host sees the same directory."""
    s3_endpoint_url: str | None = None
    """Endpoint of an S3-compatible service; None: AWS."""
    s3_region: str = "us-east-1"
    """Region that requests are signed for."""
    s3_path_style: bool = True
    """`endpoint/bucket/key` instead of `bucket.endpoint/key`; most S3-compatible services need
    it."""
    s3_public_endpoint_url: str | None = None
    """Endpoint for presigned URLs, if clients reach the store by another name."""
