"""Writes what a shell has to export on every node of a cluster before Ray starts there."""

import secrets
import shlex

from deployments.serve_environment import serve_environment

HEADER = """\
# For every node of one cluster, and for whoever starts PageRay on it: read it into the shell before
# `ray start` and `pageray serve --address`. Whoever has the token has the cluster.
"""


def node_environment(token: str | None) -> str:
    """Lines for a POSIX shell, with a new token unless there is one."""
    settings = {
        **serve_environment(),
        "RAY_AUTH_TOKEN": token or secrets.token_hex(32),
    }
    return HEADER + "".join(
        f"export {name}={shlex.quote(value)}\n" for name, value in settings.items()
    )
