"""Lengths of real conversations, and how they are scaled to what a machine can compute."""

import csv
import random
from dataclasses import dataclass
from pathlib import Path

_FILE = Path(__file__).with_name("conversation_lengths.csv")
# The longest answer of the trace, which many have: what its clients asked for at most.
_MAX_OUTPUT_TOKENS = 2000


@dataclass(frozen=True, slots=True)
class Conversation:
    """One request: what it sends and where its answer ends, which only the model knows."""

    prompt_tokens: int
    output_tokens: int
    max_tokens: int
    """What the client asks for at most."""

    def prompt(self, draw: random.Random, vocab_size: int) -> list[int]:
        """Draw token ids; the first 1000 hold special tokens and bytes."""
        return [draw.randrange(1000, vocab_size) for _ in range(self.prompt_tokens)]


@dataclass(frozen=True, slots=True)
class Scale:
    """The trace's lengths divided, and the context of the model that serves them."""

    title: str
    context: int
    input_divisor: int = 1
    output_divisor: int = 1

    def conversations(self) -> list[Conversation]:
        """Return the sample in the trace's order."""
        with _FILE.open() as file:
            rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
        return [
            Conversation(
                -(-int(row["input_length"]) // self.input_divisor),
                -(-int(row["output_length"]) // self.output_divisor),
                _MAX_OUTPUT_TOKENS // self.output_divisor,
            )
            for row in rows
        ]


AS_TRACED = Scale("as traced, 128k context", context=131_072)
# Prompts short enough for a LLaMA-2; mean 190 in, 340 out: also what ShareGPT's chats have.
CHAT = Scale("prompts / 64, 4k context", context=4096, input_divisor=64)
# The same shape a sixteenth as long, for two CPU cores.
SMALL_CHAT = Scale("a sixteenth of that", context=256, input_divisor=1024, output_divisor=16)
