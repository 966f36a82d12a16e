"""Turns the tokens of one choice into text that can be shown at once.

Whole characters only, and nothing that a stop string may still take back.
"""

from engine.sampling_params import SamplingParams
from engine.stop_checker import StopChecker
from engine.token_text import start_token_text
from engine.tokenizer import Tokenizer


class Detokenizer:
    """Text of one choice."""

    def __init__(
        self, tokenizer: Tokenizer, prompt_token_ids: list[int], params: SamplingParams
    ) -> None:
        self.num_tokens_used = 0
        """Tokens up to the one that completed the stop string; all of them while there is none."""
        self._min_tokens = params.min_tokens
        self._token_text = start_token_text(tokenizer, prompt_token_ids, params.skip_special_tokens)
        self._stop_checker = StopChecker(params.stop, include_stop=params.include_stop)

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended the text; no text comes out after it."""
        return self._stop_checker.found

    def append(self, token_ids: list[int]) -> str:
        """Take new tokens and return the text that can be shown now.

        A stop string counts if it is complete with token `min_tokens` or later.
        """
        pieces = []
        for token_id in token_ids:
            if self.stop_string is not None:
                break
            self.num_tokens_used += 1
            piece = self._token_text.append(token_id)
            may_stop = self.num_tokens_used >= self._min_tokens
            pieces.append(self._stop_checker.append(piece, may_stop=may_stop))
        return "".join(pieces)

    def finish(self) -> str:
        """Return the rest of the text: no more tokens will come."""
        may_stop = self.num_tokens_used >= self._min_tokens
        text = self._stop_checker.append(self._token_text.finish(), may_stop=may_stop)
        return text + self._stop_checker.finish()
