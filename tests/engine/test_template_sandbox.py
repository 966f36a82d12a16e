"""A hostile chat template ends, soon and with a reason."""

import time

import pytest

from engine.chat_template import ChatTemplate
from engine.errors import InvalidRequest


def render(source: str, content: str = "Hi") -> str:
    messages = [{"role": "user", "content": content}]
    template = ChatTemplate(source, {"eos_token": "</s>"})
    return template.render(messages, add_generation_prompt=True, template_kwargs={})


BOUND = r"1000000 steps|2 s"
LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
FAN = "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(80) }}"
TREE = (
    "{% for x in [1, 2] recursive %}"
    "{% if loop.depth < 60 %}{{ loop([1, 2]) }}{% endif %}{% endfor %}"
)
GROW = "{{% for a in range(99999) %}}{{% set n.s = {} %}}{{% endfor %}}"
SKIPPING = "{% for a in range(99999) if (range(9999) | sum) < 0 %}{% endfor %}"
LONG = "{% set a = 'x' * 9999999 %}{% for b in range(99999) %}{{ a }}{% endfor %}"


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        (LOOP, BOUND),
        (FAN, BOUND),
        (TREE, BOUND),
        (LONG, "16777216 characters"),
        ("{{ 'a' * 999999999999 }}", "16777216 items"),
        ("{{ 999999999999 * ['a'] }}", "16777216 items"),
        ("{{ 9 ** 999999999 }}", "numbers without end"),
        ("{{ 2 ** 4000 * 2 ** 4000 }}", "numbers without end"),
        ("{% set n = namespace(s='xx') %}" + GROW.format("n.s + n.s"), "16777216 items"),
        ("{% set n = namespace(s='xx') %}" + GROW.format("n.s ~ n.s"), "16777216 items"),
        ("{{ '%9999999999d' % 1 }}", "wide fields"),
        ("{{ lipsum(n=999999999) }}", "undefined"),
        ("{% set step = 1 %}" + LOOP, BOUND),
        ("{% set __step = dict %}{% set environment = dict %}" + LOOP, BOUND),
        (SKIPPING, BOUND),
        ("{{ range(999999999) }}", "Range too big"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
    ],
)
def test_what_would_not_end_is_refused(source: str, cause: str) -> None:
    began_s = time.monotonic()
    with pytest.raises(InvalidRequest, match=cause):
        render(source)
    assert time.monotonic() - began_s < 30  # without bounds: hours, or the memory


def test_slow_steps_run_out_of_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.template_sandbox.MAX_SECONDS", 0.05)
    slow = "{% for a in range(99999) %}{{ (range(9999) | list | length) // 99999 }}{% endfor %}"
    with pytest.raises(InvalidRequest, match=r"more than 0.05 s"):
        render(slow)


def test_what_templates_do_otherwise_is_as_before() -> None:
    source = (
        "{%- macro turn(m) %}<{{ m.role }}>{{ m.content | trim }}{% endmacro %}"
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 * 2 %}"
        "{% if loop.first %}{{ turn(m) }}{% continue %}{% endif %}{% endfor %}"
        "{{ ns.n }}{{ '-' * 3 }}{{ 2 ** 8 }}{{ 'a' ~ 1 ~ 'b' }}{{ 7 % 4 }}{{ '%s' % 'c' }}"
        "{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{% else %}none{% endfor %}"
    )
    assert render(source, " Hi ") == "<user>Hi2---256a1b3ca1"


def test_a_client_cannot_set_the_budget() -> None:
    template = ChatTemplate(LOOP, {})
    kwargs = {"step": str, "budget": str, "environment": str, "context": str}
    with pytest.raises(InvalidRequest, match=BOUND):
        template.render([], add_generation_prompt=True, template_kwargs=kwargs)


def test_a_client_cannot_set_special_tokens() -> None:
    template = ChatTemplate("{{ eos_token }}{{ mood }}", {"eos_token": "</s>"})
    kwargs = {"eos_token": "<s>", "mood": "!"}
    rendered = template.render([], add_generation_prompt=True, template_kwargs=kwargs)
    assert rendered == "</s>!"
