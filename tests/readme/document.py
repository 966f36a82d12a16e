"""README.md taken apart: code blocks, code spans, tables, and the commands in all of them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
SHELL: Final = ("", "bash", "sh", "console", "shell")
PROGRAMS: Final = (
    *(".", "curl", "docker", "git", "helm", "kubectl", "kustomize", "make", "pageray", "pip"),
    *("pip3", "pytest", "python", "python3", "ray", "serve", "uv"),
)
"""What a code span begins with that is a command; in a block every line is one."""

_FENCE = re.compile(r"^```(?P<language>\S*)[^\n]*\n(?P<text>.*?)^```$", re.M | re.S)
_INDENTED = re.compile(r"(?:(?<=\n\n)|\A)(?:    [^\n]*\n)(?:(?:    [^\n]*)?\n)*", re.M)
_SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")


@dataclass(frozen=True, slots=True)
class Code:
    """A code block or a code span."""

    text: str
    line: int
    """Of the file, from 1."""
    language: str = ""
    is_fenced: bool = False


@dataclass(frozen=True, slots=True)
class Command:
    """One command without its comment, in one line."""

    text: str
    line: int

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table."""

    cells: tuple[str, ...]
    line: int
    heading: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Document:
    """What a reader may copy from a text in Markdown."""

    blocks: tuple[Code, ...]
    spans: tuple[Code, ...]
    rows: tuple[Row, ...]

    @classmethod
    def parse(cls, text: str) -> "Document":
        """Take Markdown apart."""
        blocks: list[Code] = []

        def take(found: re.Match[str]) -> str:
            groups, line = found.groupdict(), _line(found.string, found.start())
            body = groups.get("text") or re.sub(r"^ {4}", "", found[0], flags=re.M)
            blocks.append(Code(body, line, groups.get("language", ""), bool(groups)))
            return "\n" * found[0].count("\n")

        rest = _INDENTED.sub(take, _FENCE.sub(take, text))
        spans = [
            Code(" ".join(found[1].split()), _line(rest, found.start()))
            for found in _SPAN.finditer(rest)
        ]
        in_order = sorted(blocks, key=lambda block: block.line)
        return cls(tuple(in_order), tuple(spans), tuple(_rows(rest)))

    def commands(self) -> list[Command]:
        """Every command, in the order of the text, each wording once."""
        found = [
            command
            for block in self.blocks
            if block.language in SHELL and not _is_picture(block)
            for command in _block_commands(block)
        ]
        for span in self.spans:
            if _is_command(span.text):
                found += _simple(span.text, span.line)
        unique = {command.text: command for command in reversed(found)}
        return sorted(unique.values(), key=lambda command: command.line)

    def files(self) -> list[Code]:
        """Blocks that are no shell: Python, YAML."""
        return [block for block in self.blocks if block.language not in SHELL]

    def block(self, language: str, containing: str) -> str:
        """The text of the one block with these words."""
        [found] = [b for b in self.blocks if b.language == language and containing in b.text]
        return found.text

    def table(self, heading: str) -> list[Row]:
        """The rows of all tables whose first column is called so."""
        return [row for row in self.rows if row.heading[0] == heading]


@cache
def readme() -> Document:
    """README.md of this checkout."""
    return Document.parse((ROOT / "README.md").read_text())


def spans_of(cell: str) -> list[str]:
    """The code spans of a cell of a table."""
    return _SPAN.findall(cell)


def _line(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def _is_command(span: str) -> bool:
    words = span.split()
    return words[0] in PROGRAMS and len(words) > 1


def _is_picture(block: Code) -> bool:
    return " -> " in block.text.splitlines()[0]


def _block_commands(block: Code) -> Iterator[Command]:
    first = block.line + (1 if block.is_fenced else 0)
    whole = ""
    for number, text in enumerate(block.text.splitlines(), first):
        whole += text.removesuffix("\\")
        if not text.endswith("\\"):
            yield from _simple(whole, number)
            whole = ""


def _simple(text: str, line: int) -> Iterator[Command]:
    """The commands of a line of shell; a pipe is one command."""
    quoted = r"""(?:'[^']*'|"[^"]*"|[^'"#]|(?<=\S)#)*"""
    found = re.match(quoted, text)
    bare = " ".join((found[0] if found else text).split())
    for part in re.split(r" && | ; ", bare):
        if part:
            yield Command(part, line)


def _rows(text: str) -> Iterator[Row]:
    heading: tuple[str, ...] | None = None
    for number, line in enumerate(text.splitlines(), 1):
        if not line.startswith("|"):
            heading = None
            continue
        # A bar within a code span is no border.
        bare = _SPAN.sub(lambda span: span[0].replace("|", "\0"), line)
        cells = tuple(cell.strip().replace("\0", "|") for cell in bare.strip("| ").split("|"))
        if heading is None:
            heading = cells
        elif set(line) - set("|-: "):
            yield Row(cells, number, heading)
