"""Where OpenTelemetry spans go, as part of the application's arguments."""

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field, field_validator

from engine.errors import InvalidConfig

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider


class TraceExport(BaseModel):
    """The receiver, and how much it gets."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    endpoint: str
    """Of OTLP over gRPC: http://host:port, or https:// for TLS."""
    service_name: str = "pageray"
    sampling_ratio: float = Field(default=1.0, ge=0, le=1)
    """Share of the requests that are traced. Who sends a traceparent has decided for its own."""

    @field_validator("endpoint")
    @classmethod
    def _check_endpoint(cls, endpoint: str) -> str:
        scheme, separator, address = endpoint.partition("://")
        if scheme not in ("http", "https") or not separator or not address:
            raise InvalidConfig(
                f"The OTLP endpoint '{endpoint}' is no address with a scheme.",
                "Give the receiver's gRPC port: http://localhost:4317.",
            )
        return endpoint

    def open(self, instance_id: str) -> "TracerProvider":
        """Begin to export what this process, named by `instance_id`, traces."""
        # Takes a fifth of a second, which nobody pays who traces nothing.
        from deployments.tracer_provider import open_tracer_provider  # noqa: PLC0415

        return open_tracer_provider(self, instance_id)
