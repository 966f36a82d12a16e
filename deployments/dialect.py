"""What an API must say so that CompletionEndpoint can serve it: how to read a request."""

import uuid
from dataclasses import dataclass
from typing import Any, Protocol

from deployments.http_settings import HttpSettings
from deployments.openai_schema import GenerationFields
from deployments.tenant import Tenant
from deployments.writer import CompletionWriter
from engine.errors import InvalidRequest
from engine.request import GenerateRequest
from engine.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A request that has been read: what to run and how to answer."""

    requests: list[GenerateRequest]
    stream: bool
    writer: CompletionWriter


class Dialect(Protocol):
    """One API of one model."""

    operation: str
    """What it does, in the words of OpenTelemetry's gen_ai.operation.name."""

    async def read(self, fields: dict[str, Any], tenant: Tenant) -> Ask:
        """Check a JSON object and tokenize its prompts. Raises InvalidRequest.

        Requests of different tenants never share cached prefixes.
        """


def check_num_choices(num_prompts: int, n: int, settings: HttpSettings) -> None:
    """Refuse more choices than one request may have."""
    if num_prompts * n > settings.max_choices_per_request:
        raise InvalidRequest(
            f"'n' times the prompts makes {num_prompts * n} choices.",
            f"Ask for at most {settings.max_choices_per_request} in one request.",
            param="n",
        )


def new_id(prefix: str) -> str:
    """An id that no other request has, whatever its client calls it."""
    return prefix + uuid.uuid4().hex


def generate_requests(
    completion_id: str,
    prompts: list[list[int]],
    params: SamplingParams,
    tenant: Tenant,
    fields: GenerationFields,
) -> list[GenerateRequest]:
    """One request for each prompt."""
    # A client's salt divides its own tenant's cache further; it never reaches another's.
    own_salt = "" if fields.cache_salt is None else f":{fields.cache_salt}"
    return [
        GenerateRequest(
            request_id=completion_id if len(prompts) == 1 else f"{completion_id}-{i}",
            prompt_token_ids=token_ids,
            params=params,
            cache_salt=tenant.name + own_salt,
            priority=tenant.priority_of(fields.priority),
            deadline_s=fields.deadline_s,
            tenant=tenant.name,
            weight=tenant.weight,
        )
        for i, token_ids in enumerate(prompts)
    ]
