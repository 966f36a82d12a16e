"""Turn text into token ids and back, and messages into text.

Reads tokenizer.json with the `tokenizers` package, which is what transformers does, without
importing transformers: that would cost every process more than a second of start-up.
"""

import json
from pathlib import Path
from typing import Any

import tokenizers

from engine.chat_template import ChatTemplate
from engine.errors import InvalidModel, InvalidRequest
from engine.model_folder import TOKENIZER_NAME
from engine.special_tokens import SpecialTokens

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")
DEFAULT_TEMPLATE = "default"
TOOL_TEMPLATE = "tool_use"


class Tokenizer:
    """The tokenizer of one model."""

    def __init__(
        self, backend: tokenizers.Tokenizer, templates: dict[str, ChatTemplate] | None = None
    ) -> None:
        self._backend = backend
        self._templates = templates or {}
        added = backend.get_added_tokens_decoder().values()
        self.special_tokens = SpecialTokens(token.content for token in added if token.special)

    @classmethod
    def from_folder(cls, path: Path) -> "Tokenizer":
        """Read tokenizer.json and the chat template. Raises InvalidModel."""
        file = path / TOKENIZER_NAME
        if not file.is_file():
            raise InvalidModel(
                f"'{path}' has no {TOKENIZER_NAME}.",
                "Put the model's there: texts cannot become tokens without it.",
            )
        try:
            backend = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # tokenizers raises bare Exception
            raise InvalidModel(
                f"'{file}' cannot be read: {error}.", "Fetch the model folder again."
            ) from error
        # Some models ship the settings of their training; prompts must arrive whole.
        backend.no_truncation()
        backend.no_padding()
        config = _read_json(path / "tokenizer_config.json")
        special = {name: _text(config[name]) for name in SPECIAL_TOKENS if config.get(name)}
        sources = _template_sources(path, config)
        return cls(
            backend, {name: ChatTemplate(source, special) for name, source in sources.items()}
        )

    @classmethod
    def without_tokens(cls) -> "Tokenizer":
        """Make one for a model that has none: no text has tokens, and no token has text."""
        return cls(tokenizers.Tokenizer(tokenizers.models.BPE()))

    @property
    def backend(self) -> tokenizers.Tokenizer:
        """The `tokenizers` object, for whoever decodes token by token."""
        return self._backend

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included. The model's logits may have more."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    @property
    def has_chat_template(self) -> bool:
        """Whether the model can take messages."""
        return bool(self._templates)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Return token ids; with `add_special_tokens`, the model's begin token comes first.

        A rendered chat already holds its special tokens: encode it with False.
        """
        return self.encode_parts([text], add_special_tokens)

    def encode_parts(self, texts: list[str], add_special_tokens: bool = True) -> list[int]:
        """Return the token ids of a text in parts, no token across two of them.

        A begin token comes before the first one alone. Raises InvalidRequest.
        """
        try:
            # Other than `encode`, the batch form lets go of the interpreter lock: a long text in
            # a thread of its own stalls nobody.
            [first] = self._backend.encode_batch_fast(
                texts[:1], add_special_tokens=add_special_tokens
            )
            rest = self._backend.encode_batch_fast(texts[1:], add_special_tokens=False)
            return first.ids + [token_id for encoding in rest for token_id in encoding.ids]
        except TypeError as error:  # half a surrogate pair, which JSON can spell
            raise InvalidRequest(
                "The text holds characters that Unicode does not have.", "Send valid UTF-8."
            ) from error

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        """Return the text of token ids; ids without a token have no text."""
        try:
            return self._backend.decode(ids, skip_special_tokens=skip_special_tokens)
        except OverflowError as error:
            raise InvalidRequest(
                "A token id is negative or beyond 32 bits.", "Send ids that /tokenize gives."
            ) from error

    def render_chat(
        self,
        messages: list[dict[str, Any]],
        *,
        add_generation_prompt: bool = True,
        template_kwargs: dict[str, Any] | None = None,
    ) -> str:
        """Return messages as the text the model was trained on.

        `template_kwargs` are variables of the template, such as `tools`. Raises InvalidRequest
        when the template refuses the messages, or the model has none.
        """
        template_kwargs = template_kwargs or {}
        template = self._templates.get(DEFAULT_TEMPLATE)
        if template_kwargs.get("tools"):
            template = self._templates.get(TOOL_TEMPLATE, template)
        if template is None:
            raise InvalidRequest(
                "This model has no chat template, so it cannot take messages.",
                "Use /v1/completions with a prompt, or a chat model.",
                param="messages",
            )
        return template.render(
            messages, add_generation_prompt=add_generation_prompt, template_kwargs=template_kwargs
        )


def _template_sources(path: Path, config: dict[str, Any]) -> dict[str, str]:
    """Return the model's templates by name; a file of its own wins over the config."""
    file = path / "chat_template.jinja"
    if file.is_file():
        return {DEFAULT_TEMPLATE: file.read_text(encoding="utf-8")}
    template = config.get("chat_template")
    if isinstance(template, str):
        return {DEFAULT_TEMPLATE: template}
    if isinstance(template, list):
        return {entry["name"]: entry["template"] for entry in template}
    return {}


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InvalidModel(
            f"'{path}' is no JSON: {error}.", "Fetch the model folder again."
        ) from error
    return content


def _text(token: Any) -> str:
    """Return the text of a special token, which older configs wrap in an object."""
    return str(token["content"] if isinstance(token, dict) else token)
