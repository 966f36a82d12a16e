"""What chat and text completion requests have in common, and how a JSON object becomes either.

Every documented field is known: implemented here or in chat_schema.py and completion_schema.py,
or listed in neutral_fields.py. Any other field is refused by name.
"""

import difflib
import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, Self, TypeVar

import msgspec
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from deployments.neutral_fields import NeutralFields, is_neutral
from engine.errors import InvalidRequest, UnsupportedParameter
from engine.sampling_params import SamplingParams

MAX_ITEMS = 2048
"""Most entries of a list or object in a field, prompts and messages aside."""

Int64 = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
LOGIT_BIAS_NAME: Final = "^[0-9]{1,9}$"
"""A token id as the name of a field, as a regular expression."""
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class Fields(BaseModel):
    """A request body; JSON types are taken as they are."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


class StreamOptions(Fields):
    """How a stream looks."""

    include_usage: bool = False
    include_obfuscation: Literal[False] = False
    continuous_usage_stats: Literal[False] = False


class GenerationFields(Fields):
    """Fields of every request that generates text."""

    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Int64 = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: Int64 = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Annotated[
        dict[str, float],
        Field(json_schema_extra={"propertyNames": {"pattern": LOGIT_BIAS_NAME}}),
    ] = {}
    seed: Int64 | None = None
    stop: Annotated[
        list[str], BeforeValidator(_listed, json_schema_input_type=str | list[str])
    ] = []
    stop_token_ids: list[TokenId] = []
    include_stop_str_in_output: bool = False
    min_tokens: Int64 = 0
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    cache_salt: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    priority: Annotated[int, Field(ge=-(2**31), le=2**31 - 1)] | None = None
    deadline_s: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise InvalidRequest(
                "'stream_options' is set but 'stream' is not.",
                "Set stream to true, or leave stream_options out.",
                param="stream_options",
            )
        return self

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a chunk that has the usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    def sampling_params(self, max_tokens: int | None, logprobs: int | None) -> SamplingParams:
        """In the engine's words. Raises InvalidRequest."""
        return SamplingParams(
            n=self.n,
            max_tokens=max_tokens,
            min_tokens=self.min_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            repetition_penalty=self.repetition_penalty,
            logit_bias=_token_ids(self.logit_bias),
            seed=self.seed,
            stop=tuple(self.stop),
            stop_token_ids=tuple(self.stop_token_ids),
            include_stop=self.include_stop_str_in_output,
            ignore_eos=self.ignore_eos,
            logprobs=logprobs,
            skip_special_tokens=self.skip_special_tokens,
        )


def _token_ids(logit_bias: Mapping[str, float]) -> dict[int, float]:
    for key in logit_bias:
        if not re.fullmatch(LOGIT_BIAS_NAME, key):
            raise InvalidRequest(
                f"'logit_bias' has the key {shorten(key)}, which is no token id.",
                "Use token ids as keys; POST /tokenize tells them.",
                param="logit_bias",
            )
    return {int(key): value for key, value in logit_bias.items()}


FieldsT = TypeVar("FieldsT", bound=Fields)


def parse_fields(
    kind: type[FieldsT],
    values: Mapping[str, Any],
    neutral: NeutralFields | None = None,
    unbounded: frozenset[str] = frozenset(),
) -> FieldsT:
    """Check a JSON object. Null stands for the default everywhere.

    Raises UnsupportedParameter and InvalidRequest, naming the field at fault.
    `unbounded` names the fields whose length is checked elsewhere.
    """
    known = kind.model_fields
    given: dict[str, Any] = {}
    for name, value in values.items():
        if name in known:
            _check_length(name, value, unbounded)
            if value is not None:
                given[name] = value
        elif neutral is not None and name in neutral:
            _check_neutral(name, value, neutral[name])
        else:
            raise _unknown(name, [*known, *(neutral or ())])
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise _invalid(error) from None


def shorten(text: str) -> str:
    """Text of a client, quoted, for an error message."""
    return repr(text if len(text) <= 64 else text[:64] + "...")


def _check_length(name: str, value: Any, unbounded: frozenset[str]) -> None:
    if isinstance(value, list | dict) and len(value) > MAX_ITEMS and name not in unbounded:
        raise InvalidRequest(
            f"'{name}' has {len(value)} entries.", f"Send at most {MAX_ITEMS}.", param=name
        )


def _check_neutral(name: str, value: Any, neutral: tuple[Any, ...]) -> None:
    if is_neutral(value, neutral):
        return
    fix = "Leave it out."
    if neutral:
        fix = f"Leave it out, or send {msgspec.json.encode(neutral[0]).decode()}."
    raise UnsupportedParameter(f"'{name}' is not supported at this value.", fix, param=name)


def _unknown(name: str, known: list[str]) -> InvalidRequest:
    close = difflib.get_close_matches(name[:64], known, n=1)
    fix = f"Did you mean '{close[0]}'?" if close else "Leave it out."
    return InvalidRequest(
        f"The request has an unknown field {shorten(name)}.",
        fix,
        param=name[:64],
        code="unknown_parameter",
    )


def _invalid(error: ValidationError) -> InvalidRequest:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    name = ""
    for part in first["loc"]:
        name += f"[{part}]" if isinstance(part, int) else f".{part}" if name else str(part)
    name = name[:128]
    if first["type"] == "extra_forbidden":
        return InvalidRequest(
            f"The request has an unknown field {shorten(name)}.",
            "Leave it out.",
            param=name,
            code="unknown_parameter",
        )
    if first["type"] == "missing":
        return InvalidRequest(f"'{name}' is missing.", "Send it.", param=name)
    says = first["msg"].replace("Input should", "should")
    return InvalidRequest(f"'{name}' {says}.", "Correct it and send the request again.", param=name)
