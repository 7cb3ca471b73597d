"""Finding the program in a completion: its fenced code blocks, and which of them is the program.

Blocks are read line by line as CommonMark 0.31 describes fenced code (backticks or tildes, three or more, any info
string, indented, in a list or a quotation, closed by a fence that is at least as long, or by the end of the text).
Where models deviate and a reader is in no doubt, the deviation is accepted: a closing fence may be followed by an end
token or by text, a fence with a language ends a block that was not closed, a fence may be indented to any depth, and
a Python fence may follow text on its line.

The program is the last block that is labelled as Python. Only if there is none, it is the last block without a label
that is a program rather than a value or an output; blocks with any other label and blank blocks never count.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field

from megatron_prism.verification.answers.extract import final_part

# Tokens that end a sequence and that a decoder may have left in the text, such as <|endoftext|>.
_END_TOKEN = re.compile(r"<[|｜][^<>|｜\n]{1,40}[|｜]>|</s>|<eos>|<end_of_turn>|\[EOS\]")
_LONGEST_TOKEN = 50
_FENCE = re.compile(r"`{3,}|~{3,}")
_PYTHON = re.compile(r"(?:i?python|pypy|py|cpython)[\d.]*")
_WORD = re.compile(r"[\w+#.-]+")
_LIST_MARKER = re.compile(r"[-*+]|\d{1,9}[.)]")
# Labels that do not name a language: what follows does, or nothing.
_NO_LANGUAGE = frozenset({"code", "code-cell", "code-block", "sourcecode", "solution", "program", "answer"})
_INVISIBLE = "\ufeff\u200b\u2060"
# A fence further to the right of its container than this is content (CommonMark: four spaces or more).
_LARGEST_INDENT = 3
# Longer text before a fence is not searched for list markers and quotation marks.
_LONGEST_PREFIX = 200
# A block longer than this is not parsed to see whether it is a program.
_LONGEST_PARSED = 200_000
_TAB = 4
PYTHON, UNLABELLED, OTHER = "python", "", "other"


@dataclass
class _Block:
    fence: str
    label: str
    quotes: int
    indent: int
    lines: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(f"{line}\n" for line in self.lines)


def extract_code(completion: str) -> str | None:
    """The program in the final part of `completion` (see the module), with its final newline; None if there is none."""
    blocks = [block for block in fenced_blocks(final_part(completion)) if block[1].strip()]
    labelled = [text for label, text in blocks if label == PYTHON]
    if labelled:
        return labelled[-1]
    unlabelled = [text for label, text in blocks if label == UNLABELLED]
    if len(unlabelled) > 1:
        return next(filter(_is_program, reversed(unlabelled)), unlabelled[-1])
    return unlabelled[0] if unlabelled else None


def fenced_blocks(text: str) -> list[tuple[str, str]]:
    """The label ("python", "" without one, "other") and the content of each fenced block."""
    return [(block.label, block.text) for block in _blocks(_without_end_tokens(text))]


def _without_end_tokens(text: str) -> str:
    """`text` without end tokens after its last character that is not white space, and with `\\n` as every line end."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    kept = end = len(text)
    while True:
        while end and text[end - 1].isspace():
            end -= 1
        found = list(_END_TOKEN.finditer(text, max(0, end - _LONGEST_TOKEN), end))
        if not found or found[-1].end() != end:
            return text[:kept]
        kept = end = found[-1].start()


def _blocks(text: str) -> Iterator[_Block]:
    lines = text.split("\n")
    block: _Block | None = None
    opened = number = 0
    while number < len(lines):
        line = lines[number]
        number += 1
        if block is None:
            block = _opening(line)
            opened = number
            continue
        inner = _inside_quotes(line, block.quotes)
        if inner is None:
            # The quotation has ended, and with it the block; the line may open another.
            yield block
            block = _opening(line)
            opened = number
            continue
        closed, following = _closing(inner, block)
        if not closed:
            block.lines.append(_dedented(inner, block.indent))
            continue
        yield block
        block, opened = following, number
    if block is not None:
        _close_within_a_line(block)
        yield block
        if opened + len(block.lines) < len(lines):
            # The rest of the text follows the fence at the end of a line of code.
            yield from _blocks("\n".join(lines[opened + len(block.lines) :]))


def _opening(line: str) -> _Block | None:
    """The block that `line` opens, or None."""
    found = _FENCE.search(line)
    if found is None:
        return None
    fence, info = found.group(), line[found.end() :]
    if fence[0] == "`" and "`" in info:
        # Code within a line: CommonMark allows no backtick in this info string.
        return None
    label = label_of(info)
    container = _container(line[: found.start()])
    if container is not None:
        return _Block(fence, label, *container)
    # `Here it is: ```python`: only a label tells it from three backticks in prose.
    return _Block(fence, label, 0, 0) if label == PYTHON and fence[0] == "`" else None


def label_of(info: str) -> str:
    """What an info string says about the language: "python", "" (nothing) or "other".

    `python title="a.py"`, `{python}`, `{.python .numberLines}`, `Python3`, `py:main.py`, `main.py` and
    `language-python` are Python. `pycon` is a console session with prompts, and so not a program.
    """
    for word in _WORD.findall(info[:_LONGEST_PREFIX].lower()):
        name = word.lstrip(".").removeprefix("language-").removeprefix("lang-")
        if name in _NO_LANGUAGE or name in ("language", "lang"):
            continue
        return PYTHON if _PYTHON.fullmatch(name) or name.endswith(".py") else OTHER
    return UNLABELLED


def _container(prefix: str) -> tuple[int, int] | None:
    """The depth of quotation and the column of a fence after `prefix`; None if `prefix` contains other text."""
    if len(prefix) > _LONGEST_PREFIX:
        return (0, 0) if not prefix.strip() else None
    rest, quotes = prefix.lstrip(_INVISIBLE), 0
    while (after := rest.lstrip(" \t")).startswith(">"):
        quotes += 1
        rest = after[1:].removeprefix(" ")
    width = _width(rest)
    if all(_LIST_MARKER.fullmatch(word) for word in rest.split()):
        return quotes, width
    return None


def _inside_quotes(line: str, quotes: int) -> str | None:
    """`line` without its quotation marks; None if it has fewer than `quotes`."""
    for _ in range(quotes):
        after = line.lstrip(" \t")
        if not after.startswith(">"):
            return None
        line = after[1:].removeprefix(" ")
    return line


def _closing(line: str, block: _Block) -> tuple[bool, _Block | None]:
    """Whether `line` closes `block`, and the block that the same line opens."""
    bare = line.lstrip(" \t")
    found = _FENCE.match(bare)
    if found is None or found.group()[0] != block.fence[0] or len(found.group()) < len(block.fence):
        return False, None
    if _width(line[: len(line) - len(bare)]) > block.indent + _LARGEST_INDENT:
        return False, None
    after = bare[found.end() :].strip(f" \t{_INVISIBLE}")
    if not after or _END_TOKEN.match(after):
        return True, None
    if block.fence[0] == "~" or block.fence[0] in after:
        # Tildes are rare enough to be meant exactly, and code within a line is content.
        return False, None
    # "```python" opens the next block; "``` This adds." is text after the closing fence.
    words = after.split()
    is_label = label_of(after) == PYTHON or (len(words) == 1 and bare[found.end()] not in " \t")
    return True, _opening(line) if is_label else None


def _close_within_a_line(block: _Block) -> None:
    """End a block that was never closed at the first line of code that ends with a fence (`return x```` ` ``)."""
    for number, line in enumerate(block.lines):
        code = line.rstrip()
        if code.endswith(block.fence) and code.count(block.fence) == 1 and code != block.fence:
            block.lines[number:] = [code.removesuffix(block.fence)]
            return


def _dedented(line: str, indent: int) -> str:
    """`line` without up to `indent` columns of white space."""
    column = position = 0
    while position < len(line) and column < indent and line[position] in " \t":
        column += 1 if line[position] == " " else _TAB - column % _TAB
        position += 1
    return " " * max(0, column - indent) + line[position:]


def _width(prefix: str) -> int:
    return len(prefix.expandtabs(_TAB))


def _is_program(text: str) -> bool:
    """Whether Python can read `text` and it does something: `3`, `Yes` and `x = 3` are outputs, `print(3)` is not."""
    if len(text) > _LONGEST_PARSED:
        return True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text.lstrip(_INVISIBLE))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    doing = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom, ast.Call)
    return any(isinstance(node, (*doing, ast.For, ast.While)) for node in ast.walk(tree))
