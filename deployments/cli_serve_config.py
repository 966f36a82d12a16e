"""Writes the Serve config file of an application, for `serve deploy` and Kubernetes' RayService."""

from typing import Any

import yaml

from deployments.args import AppArgs
from deployments.launch_options import LaunchOptions
from deployments.serve_environment import serve_environment

HEADER = """\
# For `serve deploy FILE`, or as serveConfigV2 of a RayService.
#
# Ray Serve reads these when it starts, so set them on the head and on every worker node before
# `ray start`, together with the same RAY_AUTH_TOKEN on all of them; `pageray node-env` exports all:
"""


def serve_config(args: AppArgs, start: LaunchOptions, *, with_cache_dir: bool) -> str:
    """The config file as text. Replica counts and the like follow from `args`, in code."""
    # A folder of this machine means nothing on the nodes of a cluster, unless one was asked for.
    left_out = set() if with_cache_dir else {"cache_dir"}
    config: dict[str, Any] = {
        "proxy_location": "EveryNode",
        "http_options": {"host": start.host, "port": start.port},
        "logging_config": start.log_format.settings(),
        "applications": [
            {
                "name": "pageray",
                "route_prefix": "/",
                "import_path": "deployments.app:build",
                "args": args.model_dump(mode="json", exclude=left_out),
            }
        ],
    }
    environment = "".join(f"#   {name}={value}\n" for name, value in serve_environment().items())
    return HEADER + environment + "\n" + yaml.safe_dump(config, sort_keys=False)
