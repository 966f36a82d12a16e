"""Rotation frequencies against transformers, for both forms of config.json."""

from typing import Any

import pytest
import torch
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from engine.rope_config import parse_rope
from engine.rotary import rotation_frequencies, rotation_table

HEAD_DIM = 64
MAX_POSITION = 4096
SCALINGS: list[dict[str, Any]] = [
    {"rope_type": "linear", "factor": 4.0},
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 1024,
    },
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024},
    {"rope_type": "yarn", "factor": 4.0},
    {"rope_type": "yarn", "factor": 8.0, "beta_fast": 16.0, "beta_slow": 2.0, "truncate": False},
    {"rope_type": "yarn", "factor": 8.0, "mscale": 0.7, "mscale_all_dim": 1.3},
    {"rope_type": "yarn", "factor": 8.0, "attention_factor": 1.5},
]


@pytest.mark.parametrize("theta", [10_000.0, 500_000.0])
@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda s: f"{s['rope_type']}-{len(s)}")
def test_frequencies_equal_those_of_transformers(scaling: dict[str, Any], theta: float) -> None:
    config = transformers.LlamaConfig(
        head_dim=HEAD_DIM,
        max_position_embeddings=MAX_POSITION,
        rope_parameters={**scaling, "rope_theta": theta},
    )
    expected, attention_factor = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](config, None)
    new_form = {"rope_parameters": {**scaling, "rope_theta": theta}}
    old_form = {"rope_scaling": scaling, "rope_theta": theta}

    for form in (new_form, old_form):
        rope = parse_rope(form, MAX_POSITION)
        torch.testing.assert_close(rotation_frequencies(rope, HEAD_DIM), expected)
        assert rope.attention_factor == pytest.approx(attention_factor)


@pytest.mark.parametrize("form", [{}, {"rope_scaling": None}, {"rope_parameters": None}])
def test_no_scaling_means_plain_frequencies(form: dict[str, Any]) -> None:
    rope = parse_rope({**form, "rope_theta": 20_000.0}, MAX_POSITION)

    expected = 20_000.0 ** -(torch.arange(0, HEAD_DIM, 2).double() / HEAD_DIM)
    torch.testing.assert_close(
        rotation_frequencies(rope, HEAD_DIM).double(), expected, rtol=1e-6, atol=0
    )


def test_the_table_holds_the_turn_of_every_position() -> None:
    rope = parse_rope({"rope_parameters": {**SCALINGS[-1], "rope_theta": 1e4}}, MAX_POSITION)

    table = rotation_table(rope, HEAD_DIM, 100, torch.device("cpu"))

    angles = torch.arange(100).double()[:, None] * rotation_frequencies(rope, HEAD_DIM).double()
    expected = torch.polar(torch.full_like(angles, 1.5), angles)
    torch.testing.assert_close(table.to(torch.complex128), expected, atol=1e-5, rtol=0)
    assert table.dtype == torch.complex64
