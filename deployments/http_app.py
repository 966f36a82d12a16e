"""Puts the HTTP application together: routes, and what every request passes on its way in.

Knows no Ray: tokens come from a TokenSource, whatever is behind it.
"""

from collections.abc import Callable, Sequence

from opentelemetry.trace import NoOpTracer, Tracer
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import Route
from starlette.types import Scope

from deployments.admission_metrics import AdmissionCollector
from deployments.api_keys import ApiKeyMiddleware
from deployments.chat import ChatDialect
from deployments.completion_endpoint import CompletionEndpoint
from deployments.dialect import Dialect
from deployments.door import Door
from deployments.http_errors import ErrorMiddleware, routing_error_response
from deployments.http_settings import HttpSettings
from deployments.metrics import HttpMetrics
from deployments.models import ModelRoutes
from deployments.openapi_document import OpenApiRoute
from deployments.peers import Peers
from deployments.readiness_metrics import ReadinessCollector
from deployments.request_id import RequestIdMiddleware
from deployments.request_trace import RequestTrace
from deployments.served_model import ServedModel, ServedModels, model_name_of
from deployments.status import StatusRoutes
from deployments.text_completion import TextCompletionDialect
from deployments.tokenize import TokenizeRoutes
from deployments.trace_middleware import TraceMiddleware

CHAT_PATH = "/v1/chat/completions"
COMPLETION_PATH = "/v1/completions"
GENERATING_PATHS = (CHAT_PATH, COMPLETION_PATH)


def build_http_app(
    served: Sequence[ServedModel],
    settings: HttpSettings,
    peers: Peers | None = None,
    door: Door | None = None,
    metrics: HttpMetrics | None = None,
    tracer: Tracer | None = None,
) -> Starlette:
    """The ASGI application. Every response has a status and a body that its client can read.

    `peers` are all frontends, where there are more; `door` lets generation requests in, and can be
    closed; `metrics` are those of the same models; `tracer` traces them.
    """
    door = door or Door()
    models = ServedModels(served)
    metrics = metrics or build_metrics(served)
    trace = RequestTrace(tracer or NoOpTracer())

    def generate(path: str, dialect: Callable[[ServedModel, HttpSettings], Dialect]) -> Route:
        endpoint = CompletionEndpoint(dialect, models, settings, metrics, door, trace)
        return Route(path, endpoint, methods=["POST"])

    def count_error(status_code: int, scope: Scope) -> None:
        metrics.count_error(status_code, model_name_of(scope))

    listing = ModelRoutes(models)
    status = StatusRoutes(models, settings, metrics, door, peers)
    tokens = TokenizeRoutes(models, settings)
    routes = [
        generate(CHAT_PATH, ChatDialect),
        generate(COMPLETION_PATH, TextCompletionDialect),
        Route("/v1/models", listing.list),
        Route("/v1/models/{model:path}", listing.get),
        Route("/tokenize", tokens.tokenize, methods=["POST"]),
        Route("/detokenize", tokens.detokenize, methods=["POST"]),
        Route("/health", status.health),
        Route("/ready", status.ready),
        Route("/status", status.status),
        Route("/status/why/{request_id}", status.why),
        Route("/metrics", status.metrics),
        Route("/version", status.version),
        Route("/openapi.json", OpenApiRoute(settings).document),
    ]
    middleware = [
        Middleware(ErrorMiddleware, on_error=count_error),
        Middleware(ApiKeyMiddleware, api_keys=settings.api_keys),
    ]
    if tracer is not None:  # innermost: who has no key says nothing of what is traced
        middleware.append(Middleware(TraceMiddleware, tracer=tracer, paths=GENERATING_PATHS))
    if settings.echo_request_id:
        middleware.insert(0, Middleware(RequestIdMiddleware))
    app = Starlette(
        routes=routes,
        middleware=middleware,
        exception_handlers={HTTPException: routing_error_response},
    )
    # A redirect would answer /v1/models/ with a body that is no JSON.
    app.router.redirect_slashes = False
    return app


def build_metrics(served: Sequence[ServedModel], frontend_id: str = "") -> HttpMetrics:
    """What one frontend measures of these models."""
    metrics = HttpMetrics({model.name: model.source.snapshots for model in served}, frontend_id)
    metrics.show(AdmissionCollector({model.name: model.source.admission for model in served}))
    metrics.show(ReadinessCollector(served))
    return metrics
