"""A mix of requests, a pure function of a seed: all ways to ask that a fault could break."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
FIRST_ID, NUM_IDS = 1000, 40_000
"""Token ids that are text of some kind."""
SHORTEST, LONGEST = 20, 300
"""Tokens out."""
END_TOKEN_BIAS = {"2": 6.0}
"""Lets a random model end about one token in a hundred."""
WORDS = ("river", "wrote", "seven", "letters", "under", "old", "green", "lamps", "nobody", "reads")


@dataclass(frozen=True, slots=True)
class ChaosRequest:
    """One HTTP request and what its answer has to have."""

    name: str
    path: str
    body: dict[str, Any]

    @property
    def is_chat(self) -> bool:
        """Whether the answer is a message."""
        return self.path == CHAT

    @property
    def streams(self) -> bool:
        """Whether the answer comes as events."""
        return bool(self.body["stream"])

    @property
    def num_choices(self) -> int:
        """Choices that the answer has."""
        return int(self.body.get("n", 1))

    @property
    def is_repeatable(self) -> bool:
        """Whether the same request has the same answer every time."""
        return self.body["temperature"] == 0 or "seed" in self.body

    @property
    def has_usage(self) -> bool:
        """Whether the answer tells its tokens."""
        return not self.streams or "stream_options" in self.body

    @property
    def has_logprobs(self) -> bool:
        """Whether the answer tells each token with its log probability."""
        return self.body.get("logprobs", False) is not False

    @property
    def max_tokens(self) -> int:
        """Most tokens of a choice."""
        return int(self.body["max_tokens"])


def mix(seed: int, count: int, model: str) -> list[ChaosRequest]:
    """Return so many requests, no two alike, of every kind in turn."""
    draw = random.Random(f"requests {seed}")
    shared = _token_ids(draw, 70)
    requests = []
    for number in range(count):
        kind = _KINDS[number % len(_KINDS)]
        body = {
            "model": model,
            "max_tokens": _length(draw),
            "stream": True,
            "temperature": 0,
            "ignore_eos": True,
        }
        kind(draw, body)
        is_chat = kind.__name__.startswith("_chat")
        if is_chat:
            words = draw.choices(WORDS, k=draw.randint(3, 60))
            body["messages"] = [{"role": "user", "content": " ".join(words)}]
        else:
            # Some begin alike, so that prefixes are found in a cache, or no longer.
            begin = shared if draw.random() < 0.3 else []
            body["prompt"] = begin + _token_ids(draw, draw.choice([3, 15, 16, 17, 90, 400]))
        if body["stream"] and draw.random() < 0.8:
            body["stream_options"] = {"include_usage": True}
        path = CHAT if is_chat else COMPLETIONS
        requests.append(ChaosRequest(f"{number}{kind.__name__}", path, body))
    return requests


def _token_ids(draw: random.Random, count: int) -> list[int]:
    return [FIRST_ID + draw.randrange(NUM_IDS) for _ in range(count)]


def _length(draw: random.Random) -> int:
    return draw.choice([SHORTEST, draw.randint(SHORTEST, LONGEST), draw.randint(100, LONGEST)])


def _greedy(draw: random.Random, body: dict[str, Any]) -> None:
    body["logprobs"] = 0


def _sampled(draw: random.Random, body: dict[str, Any]) -> None:
    body |= {"temperature": draw.choice([0.7, 1.0]), "top_p": 0.9, "seed": draw.randrange(2**31)}
    body["logprobs"] = 2


def _chat_greedy(draw: random.Random, body: dict[str, Any]) -> None:
    pass


def _penalties(draw: random.Random, body: dict[str, Any]) -> None:
    _sampled(draw, body)
    body |= {"presence_penalty": 0.8, "frequency_penalty": 0.4, "repetition_penalty": 1.2}


def _two_choices(draw: random.Random, body: dict[str, Any]) -> None:
    _sampled(draw, body)
    body["n"] = 2


def _chat_stop(draw: random.Random, body: dict[str, Any]) -> None:
    # Pairs of letters: some are found soon, some late, some never.
    body["stop"] = ["".join(draw.choices("aeiorstnx", k=2)) for _ in range(2)]


def _stop(draw: random.Random, body: dict[str, Any]) -> None:
    _sampled(draw, body)
    body["stop"] = ["".join(draw.choices("aeioqrstnx", k=3)) for _ in range(3)]
    body["include_stop_str_in_output"] = draw.random() < 0.5


def _end_token(draw: random.Random, body: dict[str, Any]) -> None:
    _sampled(draw, body)
    body |= {"ignore_eos": False, "min_tokens": 20, "logit_bias": END_TOKEN_BIAS}


def _chat_logprobs(draw: random.Random, body: dict[str, Any]) -> None:
    body |= {"temperature": 0.9, "top_k": 50, "seed": draw.randrange(2**31)}
    body |= {"logprobs": True, "top_logprobs": 2}


def _whole(draw: random.Random, body: dict[str, Any]) -> None:
    _two_choices(draw, body)
    body["stream"] = False


def _chat_whole(draw: random.Random, body: dict[str, Any]) -> None:
    body["stream"] = False


def _unseeded(draw: random.Random, body: dict[str, Any]) -> None:
    body |= {"temperature": 1.0, "top_p": 0.95, "logprobs": 0}


_KINDS: tuple[Callable[[random.Random, dict[str, Any]], None], ...] = (
    _greedy,
    _sampled,
    _chat_greedy,
    _penalties,
    _two_choices,
    _chat_stop,
    _stop,
    _end_token,
    _chat_logprobs,
    _whole,
    _unseeded,
    _chat_whole,
)
