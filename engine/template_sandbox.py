"""A sandbox for programs of others that make text: jinja2's, with bounds on steps, time and output.

jinja2's own keeps templates from attributes and from changing what they are given, not from running
for ever. Here every turn of a loop and every call of a macro counts as a step, and values that
would double with every step are refused beyond a size. Memory has no other bound.
"""

import re
import time
from collections.abc import Mapping
from typing import Any, Final

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_STEPS: Final = 1_000_000
MAX_SECONDS: Final = 2.0
MAX_CHARACTERS: Final = 1 << 24
"""Of the text, and of any value on the way to it."""
MAX_BITS: Final = 1 << 12
"""Of a product or power of integers."""
_BUDGET: Final = " budget"
"""No name that a template could have: it has a space."""
_WIDTH: Final = re.compile(r"\d{6}|\*")
"""In a format: a field that fills the memory."""


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
    """Lets every macro take a step, and every turn of a loop, also those that it skips."""

    def visit_For(self, node: nodes.For, frame: Frame) -> None:  # noqa: N802  jinja2's name
        if node.test is not None:
            node.test = nodes.And(_step(node), node.test).set_lineno(node.lineno)
        node.body.insert(0, nodes.ExprStmt(_step(node)).set_lineno(node.lineno))
        super().visit_For(node, frame)

    def visit_Macro(self, node: nodes.Macro, frame: Frame) -> None:  # noqa: N802  jinja2's name
        node.body.insert(0, nodes.ExprStmt(_step(node)).set_lineno(node.lineno))
        super().visit_Macro(node, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802  jinja2's name
        self.visit(_call("joined", node.nodes, node), frame)


def _step(place: nodes.Node) -> nodes.Expr:
    return _call("step", [nodes.ContextReference()], place)


def _call(name: str, arguments: list[nodes.Expr], place: nodes.Node) -> nodes.Expr:
    # By way of the environment, which no template can name, so that none can put its own there.
    call = nodes.Call(nodes.EnvironmentAttribute(name), arguments, [], None, None)
    call.set_lineno(place.lineno)
    return call


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Compiles templates for `render_bounded`."""

    code_generator_class = _CountingGenerator
    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        del self.globals["lipsum"]  # as many paragraphs as it is asked for

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute, unless it is too much."""
        match operator:
            case "+":
                _check_size(_size(left) + _size(right))
            case "*":
                _check_product(left, right)
                _check_product(right, left)
            case "**":
                _check_power(left, right)
            case "%" if isinstance(left, str) and _WIDTH.search(left):
                raise TemplateTooCostly("it formats with wide fields")
        return super().call_binop(context, operator, left, right)

    @staticmethod
    def step(context: Context) -> bool:
        """Take a step of the budget that the rendering has."""
        context.parent[_BUDGET].step()
        return True

    @staticmethod
    def joined(*values: object) -> str:
        """What `~` makes of values."""
        texts = [str(value) for value in values]
        _check_size(sum(map(len, texts)))
        return "".join(texts)


def render_bounded(template: jinja2.Template, variables: Mapping[str, Any]) -> str:
    """Return the text of a template of a BoundedEnvironment.

    Raises TemplateTooCostly, and whatever the template does.
    """
    budget = _Budget()
    pieces = template.generate({**variables, _BUDGET: budget})
    return "".join(map(budget.write, pieces))


def _size(value: Any) -> int:
    return len(value) if isinstance(value, str | bytes | list | tuple) else 0


def _check_size(size: int) -> None:
    if size > MAX_CHARACTERS:
        raise TemplateTooCostly(f"it makes more than {MAX_CHARACTERS} items at once")


def _check_product(sequence: Any, times: Any) -> None:
    if not isinstance(times, int):
        return
    _check_size(_size(sequence) * times)
    if isinstance(sequence, int):
        _check_bits(sequence.bit_length() + times.bit_length())


def _check_power(base: Any, exponent: Any) -> None:
    if isinstance(base, int) and isinstance(exponent, int):
        _check_bits(base.bit_length() * exponent)


def _check_bits(num_bits: int) -> None:
    if num_bits > MAX_BITS:
        raise TemplateTooCostly("it computes with numbers without end")
