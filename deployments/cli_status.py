"""`pageray status`: for each model a table of the replicas and their KV blocks."""

import time
from typing import Any

import httpx2
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from deployments.cli_client import get_json

WATCH_PERIOD_S = 1.0
BAR_WIDTH = 8
COUNTS = {"running": "num_running", "waiting": "num_waiting"}


def fetch_status(client: httpx2.Client) -> dict[str, Any]:
    """What the service says of itself."""
    return get_json(client, "/status")


def watch_status(client: httpx2.Client, console: Console) -> None:
    """Show the table anew every second until Ctrl-C."""
    try:
        with Live(console=console, auto_refresh=False) as live:
            while True:
                live.update(render_status(fetch_status(client)), refresh=True)
                time.sleep(WATCH_PERIOD_S)
    except KeyboardInterrupt:
        return


def render_status(status: dict[str, Any]) -> RenderableType:
    """A table for each model. Fields that a newer service may add or lack do no harm."""
    return Group(*map(_table, status.get("models", [])))


def _table(model: dict[str, Any]) -> RenderableType:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("replica", overflow="ellipsis", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column("KV blocks", justify="right", no_wrap=True)
    table.add_column("used", width=BAR_WIDTH)
    for name in ("cached", *COUNTS, "age"):
        table.add_column(name, justify="right", no_wrap=True)
    replicas = model.get("replicas", [])
    for replica in replicas:
        table.add_row(*_row(replica))
    count = "1 replica" if len(replicas) == 1 else f"{len(replicas)} replicas"
    title = Text.assemble((str(model.get("model", "?")), "bold"), f": {count}")
    return Group(title, table) if replicas else title


def _row(replica: dict[str, Any]) -> list[RenderableType]:
    total = replica.get("num_blocks", 0)
    cached = replica.get("num_evictable_blocks", 0)
    used = total - replica.get("num_free_blocks", 0) - cached
    connected = replica.get("connected", True)
    state = str(replica.get("state", "?")) if connected else "unreachable"
    return [
        str(replica.get("replica_id", "?")),
        Text(state, style="green" if state == "serving" else "yellow"),
        f"{used}/{total}",
        ProgressBar(total=max(total, 1), completed=used, width=BAR_WIDTH),
        str(cached),
        *(str(replica.get(field, "?")) for field in COUNTS.values()),
        f"{replica.get('age_s', 0.0):.1f} s",
    ]
