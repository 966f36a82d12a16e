"""Tokenizer: ids of the real model, chat templates as transformers renders them, bad input."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, processors
from transformers.utils.chat_template_utils import render_jinja_template

from engine.errors import InvalidModel, InvalidRequest
from engine.tokenizer import Tokenizer

MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "2 < 3 & \"quoted\" 'é'?"},
    {"role": "assistant", "content": "Yes.", "tool_calls": [{"name": "f", "arguments": {"é": 1}}]},
]
TEMPLATES = {
    "blocks": "{%- for m in messages %}\n  {%- if loop.first %}\nfirst{% endif %}\n"
    "    {% if m.content %}\n[{{ m['role'] }}] {{ m.content }}\n    {% endif %}\n{%- endfor %}",
    "tojson": "{{ messages | tojson }}|{{ messages | tojson(indent=2) }}|{{ tools | tojson }}",
    "loop controls": "{% for m in messages %}{% if loop.index0 == 1 %}{% continue %}{% endif %}"
    "{{ m.content }}{% if loop.index0 == 2 %}{% break %}{% endif %}{% endfor %}",
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}"
    "{% endfor %}",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
    "{% endfor %}{{ ns.n }}",
    "special tokens": "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}{{ pad_token }}",
    "undefined": "{% if tools is not none %}tools{% endif %}{{ nothing }}"
    "{% if add_generation_prompt %}go{% endif %}{{ enable_thinking }}",
}


def model_folder(path: Path, config: dict[str, Any] | None = None) -> Path:
    backend = Backend(models.WordLevel({"<s>": 0, "a": 1, "b": 2, "?": 3}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    backend.add_special_tokens(["<s>"])
    backend.enable_truncation(2)
    backend.enable_padding(length=8)
    backend.save(str(path / "tokenizer.json"))
    if config is not None:
        (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


def test_prompts_arrive_whole_whatever_the_file_says_of_truncation(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_folder(model_folder(tmp_path))
    assert tokenizer.encode("a b a b") == [0, 1, 2, 1, 2]
    assert tokenizer.vocab_size == 4


def test_special_tokens_come_once_and_only_when_asked(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_folder(model_folder(tmp_path))
    assert tokenizer.encode("a") == [0, 1]
    assert tokenizer.encode("<s> a", add_special_tokens=False) == [0, 1]
    assert tokenizer.decode([0, 1]) == "a"
    assert tokenizer.decode([0, 1], skip_special_tokens=False) == "<s> a"


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("variables", [{}, {"tools": [{"name": "é<f>"}], "enable_thinking": True}])
def test_template_renders_as_transformers_does(
    name: str, variables: dict[str, Any], tmp_path: Path
) -> None:
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    config = {
        **tokens,
        "eos_token": {"content": "</s>", "lstrip": False},
        "chat_template": TEMPLATES[name],
    }
    tokenizer = Tokenizer.from_folder(model_folder(tmp_path, config))
    for prompt in (True, False):
        options: dict[str, Any] = {"add_generation_prompt": prompt, **tokens, **variables}
        expected: Any = render_jinja_template([MESSAGES], chat_template=TEMPLATES[name], **options)
        rendered = tokenizer.render_chat(
            MESSAGES, add_generation_prompt=prompt, template_kwargs=variables
        )
        assert rendered == expected[0][0]


def test_template_file_wins_over_the_config(tmp_path: Path) -> None:
    folder = model_folder(tmp_path, {"chat_template": "config"})
    (folder / "chat_template.jinja").write_text("file")
    assert Tokenizer.from_folder(folder).render_chat(MESSAGES) == "file"


def test_template_for_tools_is_taken_when_there_are_tools(tmp_path: Path) -> None:
    templates = [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]
    tokenizer = Tokenizer.from_folder(model_folder(tmp_path, {"chat_template": templates}))
    assert tokenizer.render_chat(MESSAGES) == "d"
    assert tokenizer.render_chat(MESSAGES, template_kwargs={"tools": [{}]}) == "t"


@pytest.mark.parametrize(
    ("template", "messages"),
    [
        ("{{ raise_exception('roles must alternate') }}", MESSAGES),
        ("{{ messages[0].content + 1 }}", MESSAGES),
        ("{{ messages[7].content }}", MESSAGES),
        ("{{ messages.append(1) }}", MESSAGES),
        ("{{ ''.__class__.__mro__ }}", MESSAGES),
        ("{% for m in messages %}{{ m.role + m.content }}{% endfor %}", [{"role": "user"}]),
        ("{% for m in messages %}{{ m.role + m.content }}{% endfor %}", [1, None]),
        ("{{ messages | tojson }}", [{"content": {1, 2}}]),
    ],
)
def test_messages_the_template_refuses_are_the_clients_fault(
    template: str, messages: list[Any], tmp_path: Path
) -> None:
    tokenizer = Tokenizer.from_folder(model_folder(tmp_path, {"chat_template": template}))
    with pytest.raises(InvalidRequest, match="refuses these messages") as error:
        tokenizer.render_chat(messages)
    assert error.value.param == "messages"


def test_model_without_template_takes_no_messages(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_folder(model_folder(tmp_path))
    assert not tokenizer.has_chat_template
    with pytest.raises(InvalidRequest, match="no chat template") as error:
        tokenizer.render_chat(MESSAGES)
    assert error.value.param == "messages"


def test_broken_template_is_found_at_start(tmp_path: Path) -> None:
    with pytest.raises(InvalidModel, match="cannot be compiled"):
        Tokenizer.from_folder(model_folder(tmp_path, {"chat_template": "{% if %}"}))


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_broken_file_is_named(name: str, tmp_path: Path) -> None:
    folder = model_folder(tmp_path, {})
    (folder / name).write_text("{")
    with pytest.raises(InvalidModel, match=name):
        Tokenizer.from_folder(folder)


def test_text_that_unicode_does_not_have_is_the_clients_fault(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_folder(model_folder(tmp_path))
    with pytest.raises(InvalidRequest, match="Unicode"):
        tokenizer.encode("a \ud800 b")


@pytest.mark.parametrize("token_id", [-1, 1 << 40])
def test_impossible_token_id_is_the_clients_fault(token_id: int, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="token id"):
        Tokenizer.from_folder(model_folder(tmp_path)).decode([token_id])


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        # As llama.cpp's /tokenize gives them for this file. Digits are words of their own, so
        # spaces before one stay together: transformers' own conversion gives 216, 216 for two.
        ("x  12", [104, 256, 33, 34]),
        ("a\n 3", [81, 3805, 35]),
        ("   7", [333, 39]),
        ("x  y", [104, 216, 329]),
        ("2024-01-02", [34, 32, 34, 36, 29, 32, 33, 29, 32, 34]),
        ("<|im_start|>user\n", [1, 4093, 198]),
    ],
)
def test_ids_of_smollm2_are_those_of_llama_cpp(
    text: str, ids: list[int], smollm2_path: Path
) -> None:
    tokenizer = Tokenizer.from_folder(smollm2_path)
    assert tokenizer.encode(text) == ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_chat_of_smollm2_is_chatml(smollm2_path: Path) -> None:
    tokenizer = Tokenizer.from_folder(smollm2_path)
    text = tokenizer.render_chat([{"role": "user", "content": "What is the capital of France?"}])
    assert text == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        "<|im_end|>\n<|im_start|>user\nWhat is the capital of France?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert ids == tokenizer.encode(text)
    assert ids[-4:] == [1, 520, 9531, 198]
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
