"""Render messages with a model's chat template, as Hugging Face's conventions ask.

transformers has a renderer of its own, but importing it costs over a second of start-up in every
process; what templates rely on are the few lines below. Templates come with models and may be
hostile: they run in a sandbox with bounds (template_sandbox.py).
"""

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node
from jinja2.parser import Parser

from engine.errors import InvalidModel, InvalidRequest
from engine.template_sandbox import BoundedEnvironment, render_bounded


class ChatTemplate:
    """A compiled template and the special tokens it may write."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateError as error:
            raise InvalidModel(
                f"The model's chat template cannot be compiled: {error}.",
                "Correct chat_template.jinja or chat_template in tokenizer_config.json.",
            ) from error
        self._special_tokens = dict(special_tokens)

    def render(
        self,
        messages: list[dict[str, Any]],
        *,
        add_generation_prompt: bool,
        template_kwargs: Mapping[str, Any],
    ) -> str:
        """Return the text of a conversation. Raises InvalidRequest when the template refuses."""
        variables = {
            "tools": None,
            "documents": None,
            **template_kwargs,
            **self._special_tokens,
            "messages": messages,
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            return render_bounded(self._template, variables)
        except Exception as error:  # the model's program, run on the client's data
            raise InvalidRequest(
                f"The model's chat template refuses these messages: {error}.",
                "Send messages with roles and contents that this model knows.",
                param="messages",
            ) from error


class _GenerationTag(Extension):
    """Lets `{% generation %}`, which marks text for training, do nothing."""

    tags = {"generation"}  # noqa: RUF012  declared so by jinja2

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> BoundedEnvironment:
    environment = BoundedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationTag]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Write JSON as it is; jinja2's own filter escapes for HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(layout: str) -> str:
    return datetime.now().astimezone().strftime(layout)
