"""Options of `pageray serve` that say what it shows of itself."""

from dataclasses import dataclass
from typing import Annotated

from deployments.cli_engine_options import EngineOptions, option
from deployments.launch_options import LogFormat


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservabilityOptions(EngineOptions):
    """The options as given, checked one by one but not against each other."""

    dashboard: Annotated[
        bool,
        option(
            "Observability",
            "--dashboard/--no-dashboard",
            help="Start the Ray dashboard with a cluster of our own.",
        ),
    ] = True
    verbose: Annotated[
        bool,
        option("Observability", "--verbose", "-v", help="Show the logs of all processes here."),
    ] = False
    log_format: Annotated[
        LogFormat,
        option(
            "Observability",
            "--log-format",
            help="json: records of one line each, with the request's id, for collectors of logs.",
        ),
    ] = LogFormat.TEXT
    otlp_endpoint: Annotated[
        str | None,
        option(
            "Observability",
            "--otlp-endpoint",
            "--otlp-traces-endpoint",
            metavar="URL",
            help="OTLP receiver (gRPC) of traces, like http://localhost:4317.",
            show_default="no traces",
        ),
    ] = None
    otlp_service_name: Annotated[
        str,
        option(
            "Observability",
            "--otlp-service-name",
            metavar="NAME",
            help="Name of the service in traces.",
        ),
    ] = "pageray"
    trace_sampling_ratio: Annotated[
        float,
        option(
            "Observability",
            "--trace-sampling-ratio",
            metavar="F",
            help="Share of the requests that are traced, of those without a traceparent.",
        ),
    ] = 1.0
