"""Messages survive the wire unchanged, and nothing else gets through it."""

from dataclasses import asdict, replace

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cluster.messages import (
    Abort,
    Ack,
    ClientMessage,
    Ended,
    Frame,
    Hello,
    InvalidMessage,
    Refused,
    Role,
    ServerMessage,
    Submit,
    Welcome,
    WireError,
    decode_client_message,
    decode_server_message,
    encode,
)
from engine.errors import (
    InvalidConfig,
    InvalidModel,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    PageRayError,
    PromptTooLong,
    ReplicaLost,
    UnsupportedParameter,
)
from engine.output import FinishReason, TokenLogprob, TokenOutput
from engine.request import GenerateRequest
from engine.sampling_params import (
    MAX_CHOICES,
    MAX_COUNT,
    MAX_LOGPROBS,
    SEED_BITS,
    SamplingParams,
)
from engine.snapshot import EngineSnapshot, EngineState
from tests.cluster.token_fakes import make_request

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

text = st.text(max_size=20)
count = st.integers(0, 2**40)
token_ids = st.lists(st.integers(0, 300_000), max_size=10)
number = st.floats(allow_nan=False)
seconds = st.floats(0, 1e6)

params = st.builds(
    SamplingParams,
    n=st.integers(1, MAX_CHOICES),
    max_tokens=st.none() | st.integers(1, MAX_COUNT),
    min_tokens=st.integers(0, 1),
    temperature=st.floats(0, 100),
    top_k=st.integers(-1, MAX_COUNT),
    top_p=st.floats(0.01, 1),
    min_p=st.floats(0, 1),
    presence_penalty=st.floats(-2, 2),
    repetition_penalty=st.floats(0.01, 100),
    logit_bias=st.dictionaries(st.integers(0, 300_000), st.floats(-100, 100), max_size=3),
    seed=st.none() | st.integers(-(2**SEED_BITS), 2**SEED_BITS - 1),
    stop=st.lists(st.text(min_size=1, max_size=5), max_size=3).map(tuple),
    stop_token_ids=token_ids.map(tuple),
    ignore_eos=st.booleans(),
    logprobs=st.none() | st.integers(0, MAX_LOGPROBS),
)
requests = st.builds(
    GenerateRequest,
    request_id=text,
    prompt_token_ids=token_ids,
    params=params,
    cache_salt=text,
)
logprobs = st.builds(
    TokenLogprob,
    token_id=count,
    logprob=number,
    top=st.lists(st.tuples(count, number), max_size=3),
)
outputs = st.builds(
    TokenOutput,
    request_id=text,
    choice_index=count,
    index=count,
    token_ids=token_ids,
    logprobs=st.none() | st.lists(logprobs, max_size=3),
    finish_reason=st.none() | st.sampled_from(FinishReason),
    num_cached_tokens=count,
    error=st.none() | text,
)
snapshots = st.builds(
    EngineSnapshot,
    epoch=text,
    sequence=count,
    state=st.sampled_from(EngineState),
    block_size=count,
    num_blocks=count,
    num_free_blocks=count,
    num_evictable_blocks=count,
    step_age_s=seconds,
    step_time_s=st.tuples(seconds, seconds, seconds),
)
wire_errors = st.builds(
    WireError,
    kind=text,
    cause=text,
    fix=text,
    param=st.none() | text,
    code=st.none() | text,
    retry_after_s=st.none() | seconds,
)
client_messages = st.one_of(
    st.builds(
        Hello,
        token=text,
        peer_id=text,
        role=st.sampled_from(Role),
        epoch=st.none() | text,
        last_frame=count,
    ),
    st.builds(Submit, frontend_id=text, request=requests),
    st.builds(Abort, request_id=text, choice_index=st.none() | count),
    st.builds(Ack, number=count),
)
server_messages = st.one_of(
    st.builds(Welcome, epoch=text, resumed=st.booleans()),
    st.builds(
        Frame,
        number=count,
        outputs=st.lists(outputs, max_size=3),
        snapshot=snapshots,
        accepted=st.lists(text, max_size=3),
    ),
    st.builds(Refused, request_id=text, error=wire_errors),
    st.builds(Ended, request_ids=st.lists(text, max_size=3)),
)


largest_counts = SamplingParams(
    n=MAX_CHOICES,
    max_tokens=MAX_COUNT,
    min_tokens=MAX_COUNT,
    top_k=MAX_COUNT,
    logit_bias={MAX_COUNT: 100},
    seed=2**SEED_BITS - 1,
    stop_token_ids=(MAX_COUNT,),
    logprobs=MAX_LOGPROBS,
)


@unhurried
@given(client_messages)
@example(Submit("f", replace(make_request("a"), params=largest_counts)))
def test_client_message_survives_the_wire(message: ClientMessage) -> None:
    assert decode_client_message(encode(message)) == message


@unhurried
@given(server_messages)
def test_server_message_survives_the_wire(message: ServerMessage) -> None:
    assert decode_server_message(encode(message)) == message


@unhurried
@given(st.binary(max_size=200))
def test_random_bytes_are_refused_by_name(payload: bytes) -> None:
    for decode in (decode_client_message, decode_server_message):
        with pytest.raises(InvalidMessage):
            decode(payload)


@unhurried
@given(client_messages, st.data())
def test_damaged_message_is_refused_or_still_well_typed(
    message: ClientMessage, data: st.DataObject
) -> None:
    payload = bytearray(encode(message))
    position = data.draw(st.integers(0, len(payload) - 1))
    payload[position] = data.draw(st.integers(0, 255))
    try:
        decoded = decode_client_message(bytes(payload))
    except InvalidMessage:
        return
    assert decode_client_message(encode(decoded)) == decoded


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        b"\x91" * 100_000,
        b"\xa3\xff\xff\xff",
        msgspec.msgpack.encode({"type": "ack", "number": "3"}),
        msgspec.msgpack.encode({"type": "ack", "number": 3, "more": 1}),
        msgspec.msgpack.encode({"type": "ack"}),
        msgspec.msgpack.encode({"type": "welcome", "epoch": "", "resumed": True}),
    ],
)
def test_client_message_of_the_wrong_shape_is_refused(payload: bytes) -> None:
    with pytest.raises(InvalidMessage, match="not valid"):
        decode_client_message(payload)


def test_request_with_impossible_params_is_refused_with_the_reason() -> None:
    request = asdict(make_request("a"))
    request["params"]["temperature"] = -1.0
    payload = {"type": "submit", "frontend_id": "f", "request": request}
    with pytest.raises(InvalidMessage, match="temperature"):
        decode_client_message(msgspec.msgpack.encode(payload))


@pytest.mark.parametrize(
    "error",
    [
        PageRayError("Cause.", "Fix."),
        InvalidRequest("Cause.", "Fix."),
        InvalidRequest("Cause.", "Fix.", "n", "code"),
        PromptTooLong("Cause.", "Fix."),
        UnsupportedParameter("Cause.", "Fix.", "audio"),
        ModelNotFound("Cause.", "Fix."),
        InvalidModel("Cause.", "Fix."),
        InvalidConfig("Cause.", "Fix."),
        Overloaded("Cause.", "Fix.", 2.5),
        ReplicaLost("Cause.", "Fix."),
    ],
    ids=lambda error: type(error).__name__,
)
def test_error_is_rebuilt_with_its_class_and_arguments(error: PageRayError) -> None:
    rebuilt = WireError.from_error(error).to_error()
    assert type(rebuilt) is type(error)
    assert rebuilt.args == error.args


def test_every_error_class_of_the_tree_crosses_the_wire_as_itself() -> None:
    def tree(kind: type[PageRayError]) -> list[type[PageRayError]]:
        return [kind, *(below for child in kind.__subclasses__() for below in tree(child))]

    for kind in tree(PageRayError):
        if kind.__module__ == "engine.errors":
            assert type(WireError.from_error(kind("Cause.", "Fix.")).to_error()) is kind


def test_unknown_kind_of_error_becomes_a_plain_one() -> None:
    assert type(WireError("Newer", "Cause.", "Fix.").to_error()) is PageRayError


def test_private_subclass_crosses_as_its_nearest_public_class() -> None:
    class VeryLost(ReplicaLost):
        pass

    assert type(WireError.from_error(VeryLost("Cause.", "Fix.")).to_error()) is ReplicaLost
