"""Puts the HTTP application together: routes, and what every request passes on its way in.

Knows no Ray: tokens come from a TokenSource, whatever is behind it.
"""

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import Route

from cluster.token_source import TokenSource
from deployments.admission_metrics import AdmissionCollector
from deployments.api_keys import ApiKeyMiddleware
from deployments.chat import ChatDialect
from deployments.completion_endpoint import CompletionEndpoint
from deployments.dialect import Dialect
from deployments.http_errors import ErrorMiddleware, routing_error_response
from deployments.http_settings import HttpSettings
from deployments.metrics import HttpMetrics
from deployments.models import ModelRoutes
from deployments.prompt_encoder import PromptEncoder
from deployments.request_id import RequestIdMiddleware
from deployments.status import StatusRoutes
from deployments.text_completion import TextCompletionDialect
from deployments.token_names import TokenNames
from deployments.tokenize import TokenizeRoutes
from engine.tokenizer import Tokenizer


def build_http_app(source: TokenSource, tokenizer: Tokenizer, settings: HttpSettings) -> Starlette:
    """The ASGI application. Every response has a status and a body that its client can read."""
    metrics = HttpMetrics(settings.model_name, source.snapshots)
    metrics.show(AdmissionCollector(settings.model_name, source.admission))
    encoder = PromptEncoder(tokenizer, settings)
    texts = TokenNames(tokenizer)

    def generate(path: str, dialect: Dialect) -> Route:
        endpoint = CompletionEndpoint(dialect, source, tokenizer, settings, metrics)
        return Route(path, endpoint, methods=["POST"])

    models = ModelRoutes(settings)
    status = StatusRoutes(source, settings, metrics)
    tokens = TokenizeRoutes(tokenizer, encoder, texts, settings)
    routes = [
        generate("/v1/chat/completions", ChatDialect(encoder, texts, settings)),
        generate("/v1/completions", TextCompletionDialect(encoder, texts, settings)),
        Route("/v1/models", models.list),
        Route("/v1/models/{model:path}", models.get),
        Route("/tokenize", tokens.tokenize, methods=["POST"]),
        Route("/detokenize", tokens.detokenize, methods=["POST"]),
        Route("/health", status.health),
        Route("/ready", status.ready),
        Route("/status", status.status),
        Route("/status/why/{request_id}", status.why),
        Route("/metrics", status.metrics),
        Route("/version", status.version),
    ]
    middleware = [
        Middleware(ErrorMiddleware, on_error=metrics.count_error),
        Middleware(ApiKeyMiddleware, api_keys=settings.api_keys),
    ]
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
