"""`pageray status --why`: the replicas that a request could have had, and why it got its own."""

from typing import Any
from urllib.parse import quote

import httpx2
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from deployments.cli_client import get_json

MEANINGS = {
    "only": "the only replica with room",
    "prefix": "lowest cost, and some of the prompt was cached there",
    "session": "lowest cost, because the last turn of its session was there",
    "cost": "lowest cost",
    "queue": "no replica had room: its queue was the shortest",
    "late": "nothing was heard of any replica for too long: fewest requests of this frontend",
    "policy": "chosen by a policy that gives no reason",
}
COLUMNS = {
    "cached blocks": "num_cached_blocks",
    "free blocks": "num_available_blocks",
    "active": "num_active",
    "queued tokens": "num_queued_prefill_tokens",
}


def fetch_why(client: httpx2.Client, request_id: str) -> dict[str, Any]:
    """What the service says of the request's placement."""
    return get_json(client, f"/status/why/{quote(request_id, safe='')}")


def render_why(why: dict[str, Any]) -> RenderableType:
    """A table for each attempt, the chosen replica first."""
    parts: list[RenderableType] = []
    for decision in why.get("decisions", []):
        reason = str(decision.get("reason", "?"))
        parts.append(
            Text(
                f"{decision.get('request_id', '?')}: {MEANINGS.get(reason, reason)} "
                f"({decision.get('num_prompt_tokens', '?')} prompt tokens, "
                f"replicas compared: {decision.get('num_considered', '?')})"
            )
        )
        table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column("replica", overflow="ellipsis", no_wrap=True)
        for heading in ("cost", *COLUMNS):
            table.add_column(heading, justify="right", no_wrap=True)
        for candidate in decision.get("candidates", []):
            table.add_row(
                str(candidate.get("replica_id", "?")),
                f"{candidate.get('cost', 0.0):.4g}",
                *(str(candidate.get(field, "?")) for field in COLUMNS.values()),
            )
        parts.append(table)
    return Group(*parts)
