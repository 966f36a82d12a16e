"""Writes a real checkpoint in every quantised form that the engine reads.

Plain rounding to the nearest, no calibration: what the forms can hold, not what AWQ or GPTQ make of
it. Groups of 64 inputs, which divide SmolLM2's 576 and 1536; blocks of 128 x 128, ragged at ends.
The order of inputs (desc_act) is that of activations, which nobody measured here: it is random.
"""

import json
import shutil
from pathlib import Path

from safetensors.torch import load_file

from tests.engine.quantized_files import (
    AWQ_SETTINGS,
    Form,
    awq,
    compressed_float8,
    compressed_int4,
    fp8,
    gptq,
    gptq_settings,
    packed,
    quantize_tensors,
    same_inputs,
    write_folder,
)

GROUP = 64
BLOCK = (128, 128)
FORMS = {
    # `--quantization fp8` makes the same numbers, see tests/engine/test_quantized_checkpoints.py.
    "fp8, a scale for each output": Form(
        compressed_float8("channel"), fp8("weight_scale", "channel")
    ),
    "fp8, a scale for each matrix": Form(compressed_float8("tensor"), fp8("weight_scale", "one")),
    "fp8, blocks of 128 x 128": Form(
        {"quant_method": "fp8", "weight_block_size": list(BLOCK)},
        fp8("weight_scale_inv", "block", BLOCK),
    ),
    "AWQ int4": Form({**AWQ_SETTINGS, "group_size": GROUP}, awq(GROUP)),
    "GPTQ int4": Form(gptq_settings(group_size=GROUP), gptq(size=GROUP)),
    "GPTQ int4, symmetric": Form(
        gptq_settings(group_size=GROUP, sym=True), gptq(symmetric=True, size=GROUP)
    ),
    "GPTQ int4, desc_act": Form(
        gptq_settings(group_size=GROUP, desc_act=True), gptq(size=GROUP, order=same_inputs)
    ),
    "packed int4": Form(compressed_int4(False, GROUP), packed(False, GROUP)),
    "packed int4, symmetric": Form(compressed_int4(True, GROUP), packed(True, GROUP)),
    "packed int4, a scale for each output": Form(compressed_int4(False, -1), packed(False, -1)),
}
"""Name to form."""


def write_form(plain: Path, folder: Path, form: Form) -> Path:
    """Write a model folder again, its linear layers in another form."""
    shutil.copytree(plain, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    stored, _ = quantize_tensors(load_file(plain / "model.safetensors"), form)
    config = json.loads((plain / "config.json").read_text())
    return write_folder(folder, stored, {**config, "quantization_config": form.settings})
