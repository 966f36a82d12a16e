"""transformers in float32 as the judge of greedy tokens."""

from pathlib import Path

from tests.oracle import NEAR_TIE, ReferenceModel


class GreedyReference:
    """Tells whether tokens are what the model takes greedily.

    One forward pass over prompt and output shows what follows every token, given the ones that
    were chosen: as strict as generating, and much cheaper.
    """

    def __init__(self, model_path: Path) -> None:
        self._model = ReferenceModel(model_path)
        self._verified: dict[tuple[int, ...], tuple[list[int], int]] = {}

    def num_equal(self, prompt: list[int], output: list[int]) -> int:
        """Number of tokens up to which the output is the reference's.

        Less than all of them only if it departs at a near tie; AssertionError if elsewhere.
        """
        verified, num_equal = self._verified.get(tuple(prompt), ([], 0))
        if verified[: len(output)] != output:
            num_equal = self._compare(prompt, output)
            self._verified[tuple(prompt)] = (output, num_equal)
        return min(num_equal, len(output))

    def _compare(self, prompt: list[int], output: list[int]) -> int:
        logits = self._model.logits(prompt + output)[len(prompt) - 1 : -1]
        assert len(logits) == len(output)
        values, ids = logits.topk(2)
        for i, (token_id, top) in enumerate(zip(output, ids.tolist(), strict=True)):
            if token_id != top[0]:
                gap = float(values[i, 0] - values[i, 1])
                assert gap < NEAR_TIE, (
                    f"token {i} is {token_id}; the reference takes {top[0]}, {gap:.4f} "
                    f"above {top[1]}"
                )
                assert token_id == top[1]
                return i
        return len(output)
