"""What the HTTP application needs to know, whatever it runs on."""

from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Self

from deployments.args import AppArgs
from deployments.tenant import ApiKey


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpSettings:
    """Limits and keys of one HTTP application, whatever models it serves."""

    api_keys: tuple[ApiKey, ...] = field(default=(), repr=False)
    """Keys of which clients must send one; empty: anybody may ask."""
    max_body_bytes: int = 4 << 20
    body_timeout_s: float = 60.0
    """Longest time that a client may take to send its body."""
    send_timeout_s: float = 120.0
    """Longest time that a client may leave its stream unread."""
    max_prompts_per_request: int = 256
    max_choices_per_request: int = 1024
    """Prompts times `n`."""
    version: str = "unknown"
    echo_request_id: bool = True
    """Put x-request-id into responses; Ray Serve does it on its own."""

    @classmethod
    def from_args(cls, args: AppArgs) -> Self:
        """Settings under Ray Serve."""
        return cls(
            api_keys=args.api_keys,
            max_body_bytes=args.max_body_bytes,
            version=_installed_version(),
            echo_request_id=False,
        )


def _installed_version() -> str:
    try:
        return version("pageray")
    except PackageNotFoundError:  # run from a folder that was never installed
        return "unknown"
