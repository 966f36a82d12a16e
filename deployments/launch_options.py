"""Where and how `pageray serve` starts the application; what it starts is in `deployments.args`."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class LogFormat(StrEnum):
    """How frontends and replicas write their logs."""

    TEXT = "text"
    JSON = "json"

    def settings(self) -> dict[str, object]:
        """Ray Serve's LoggingConfig. Prompts are in no log, whatever its format."""
        return {"enable_access_log": False, "encoding": self.upper()}


EVERYWHERE: Final = "0.0.0.0"  # noqa: S104  a start on one machine listens to that one alone
"""Every interface."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchOptions:
    """The Ray cluster to use and the address to listen on."""

    host: str = "127.0.0.1"
    """Address that HTTP listens on; 0.0.0.0: every interface."""
    port: int = 8000
    address: str | None = None
    """A running Ray cluster to join; None: start one on this machine and stop it at the end."""
    dashboard: bool = True
    """Start the Ray dashboard with a cluster of our own."""
    verbose: bool = False
    """Show the logs of every process here."""
    log_format: LogFormat = LogFormat.TEXT
