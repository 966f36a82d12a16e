"""A Ray cluster for tests, in a process of its own: tells its addresses, ends with its stdin."""

import json
import sys

import ray
from ray import serve


def main() -> None:
    """Start, announce, wait, stop."""
    context = ray.init(num_cpus=8, include_dashboard=True, dashboard_port=0, log_to_driver=False)
    addresses = {
        "dashboard": context.dashboard_url,
        "address": ray.get_runtime_context().gcs_address,
    }
    sys.stdout.write(json.dumps(addresses) + "\n")
    sys.stdout.flush()
    sys.stdin.read()
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
