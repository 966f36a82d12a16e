"""A sandbox for programs of others that make text: jinja2's, with bounds on work and on output.

jinja2's own keeps templates from attributes and from changing what they are given, not from running
for ever. Every turn of a loop and every call of a macro counts as a step here, and products that
would fill the memory are refused.
"""

import time
from collections.abc import Mapping
from typing import Any, Final

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_STEPS: Final = 1_000_000
MAX_SECONDS: Final = 5.0
MAX_CHARACTERS: Final = 1 << 24
"""Of the text, and of any product on the way to it."""
MAX_BITS: Final = 1 << 12
"""Of a product or power of integers."""
_STEP: Final = "__step"


class TemplateTooCostly(Exception):
    """A template has reached a bound."""


class _Budget:
    def __init__(self) -> None:
        self._num_left = MAX_STEPS
        self._deadline_s = time.monotonic() + MAX_SECONDS
        self._num_characters_left = MAX_CHARACTERS

    def step(self) -> None:
        self._num_left -= 1
        if self._num_left < 0:
            raise TemplateTooCostly(f"it takes more than {MAX_STEPS} steps")
        if self._num_left % 256 == 0 and time.monotonic() > self._deadline_s:
            raise TemplateTooCostly(f"it takes more than {MAX_SECONDS:g} s")

    def write(self, text: str) -> str:
        self._num_characters_left -= len(text)
        if self._num_characters_left < 0:
            raise TemplateTooCostly(f"it makes more than {MAX_CHARACTERS} characters")
        return text


class _CountingGenerator(CodeGenerator):
    """Lets every loop and macro begin with a step."""

    def visit_For(self, node: nodes.For, frame: Frame) -> None:  # noqa: N802  jinja2's name
        node.body.insert(0, _step(node))
        super().visit_For(node, frame)

    def visit_Macro(self, node: nodes.Macro, frame: Frame) -> None:  # noqa: N802  jinja2's name
        node.body.insert(0, _step(node))
        super().visit_Macro(node, frame)


def _step(place: nodes.Node) -> nodes.Node:
    call = nodes.Call(nodes.Name(_STEP, "load"), [], [], None, None)
    return nodes.ExprStmt(call).set_lineno(place.lineno)


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Compiles templates for `render_bounded`."""

    code_generator_class = _CountingGenerator
    intercepted_binops = frozenset(["*", "**"])

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Multiply or raise to a power, unless it is too much."""
        if operator == "**":
            _check_power(left, right)
        else:
            _check_product(left, right)
            _check_product(right, left)
        return super().call_binop(context, operator, left, right)


def render_bounded(template: jinja2.Template, variables: Mapping[str, Any]) -> str:
    """Return the text of a template of a BoundedEnvironment.

    Raises TemplateTooCostly, and whatever the template does.
    """
    budget = _Budget()
    pieces = template.generate({**variables, _STEP: budget.step})
    return "".join(map(budget.write, pieces))


def _check_product(sequence: Any, times: Any) -> None:
    if not isinstance(times, int):
        return
    if isinstance(sequence, str | bytes | list | tuple):
        if len(sequence) * times > MAX_CHARACTERS:
            raise TemplateTooCostly(f"it makes more than {MAX_CHARACTERS} items at once")
    elif isinstance(sequence, int):
        _check_bits(sequence.bit_length() + times.bit_length())


def _check_power(base: Any, exponent: Any) -> None:
    if isinstance(base, int) and isinstance(exponent, int):
        _check_bits(base.bit_length() * exponent)


def _check_bits(num_bits: int) -> None:
    if num_bits > MAX_BITS:
        raise TemplateTooCostly("it computes with numbers without end")
