"""What the terminal shows once the service is ready."""

import textwrap

from ray import serve
from rich.console import Console

from cluster.engine_description import EngineDescription
from deployments.args import AppArgs, ModelArgs
from deployments.launch_options import EVERYWHERE, LaunchOptions
from deployments.serve_peers import APP_NAME


def greet(args: AppArgs, url: str, console: Console, elapsed_s: float) -> None:
    """Say that the service is ready, how long each part of the start took, and what to try."""
    for model in args.models:
        if len(args.models) > 1:
            console.print(f"  {model.model_name}", highlight=False, markup=False)
        _describe(model, console)
    names = [model.model_name for model in args.models]
    console.print(
        f"\n[bold green]Ready[/] after {elapsed_s:.1f} s: {', '.join(names)} at {url}\n\n"
        f"curl {url}/v1/chat/completions -H 'Content-Type: application/json' -d '"
        f'{{"model": "{names[0]}", "temperature": 0, "messages": '
        '[{"role": "user", "content": "What is the capital of France?"}]}\'\n\n'
        "Ctrl-C drains and stops.",
        highlight=False,
        soft_wrap=True,
    )


def _describe(model: ModelArgs, console: Console) -> None:
    handle = serve.get_deployment_handle(model.deployment_name, APP_NAME)
    handle._init(_run_router_in_separate_loop=True)  # the driver has no event loop of its own
    description = EngineDescription(**handle.describe.remote().result())
    for name, seconds in description.phase_times_s.items():
        console.print(f"    {name:<24}{seconds:6.1f} s", highlight=False)
    console.print(textwrap.indent(description.memory_plan, "    "), highlight=False)


def url_of(options: LaunchOptions) -> str:
    """Where clients on this machine find a service with these options."""
    host = "localhost" if options.host in (EVERYWHERE, "127.0.0.1") else options.host
    return f"http://{host}:{options.port}"
