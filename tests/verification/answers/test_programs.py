"""Which fenced block of a completion is the program."""

from __future__ import annotations

import time

import pytest

from megatron_prism.verification.answers.programs import extract_code, fenced_blocks, label_of

CODE = "def f(x):\n    return x\n"


def test_the_last_python_block_of_the_final_part_is_taken():
    text = "<think>```python\na\n```</think>\n```python\nb\n```\ntext\n```py\nc = '``'\n```\nbye"
    assert extract_code(text) == "c = '``'\n"
    assert extract_code("def f(x): return x") is None
    assert extract_code("```python\n\n```") is None


@pytest.mark.parametrize(
    ("info", "label"),
    [
        *(
            (info, "python")
            for info in ("python", "Python3", "py", "PY3", "python3.11", "ipython", " python")
        ),
        *(
            (info, "python")
            for info in ('python title="a.py"', "{python}", "{.python .numberLines}", "main.py")
        ),
        *(
            (info, "python")
            for info in ("python:main.py", "language-python", "{code-cell} python", "python,x")
        ),
        *((info, "") for info in ("", "  ", "code", "{code-cell}")),
        *(
            (info, "other")
            for info in ("json", "text", "output", "bash", "cpp", "pycon", "cython", "pyret", "c")
        ),
    ],
)
def test_what_an_info_string_says(info, label):
    assert label_of(info) == label


@pytest.mark.parametrize(
    "text",
    [
        f"```python\n{CODE}```",
        f"~~~python\n{CODE}~~~",
        f"`````python\n{CODE}`````",
        f"```python\n{CODE}`````\n",
        f"```python\n{CODE}",
        f"```python\n{CODE}<|im_end|>",
        f"```python\n{CODE}```<|endoftext|>",
        f"```python\n{CODE}```\n<|im_end|>\n</s>\n",
        f"```python\n{CODE}``` This returns x.",
        f"Here it is: ```python\n{CODE}```",
        f"\ufeff```python\n{CODE}```",
        f"```python\n{CODE}```".replace("\n", "\r\n"),
        f"```python\n{CODE}```".replace("\n", "\r"),
        f"```json\n{{}}\n```\n```python\n{CODE}```",
        f"```python\n{CODE}```\nIt prints:\n```\n3\n```",
        f"```\n{CODE}```\nIt prints:\n```\n3\n```",
        f"```\n{CODE}```\n```",
        f"```python\n{CODE}```\n\n```bash\npython f.py\n```",
        f"```\nx = 3\nprint(x)\n```\n```python\n{CODE}```\n```\nprint(4)\n```",
        f"```python\nunfinished(\n```python\n{CODE}```",
        f"````markdown\n```text\n```\n````\n```python\n{CODE}```",
        f"An inline ```x``` and\n```python\n{CODE}```",
        "1. The code:\n   ```python\n   def f(x):\n       return x\n   ```\n2. Done.",
        "- ```python\n  def f(x):\n      return x\n  ```",
        "* outer\n\n      ```python\n      def f(x):\n          return x\n      ```",
        "\t```python\n\tdef f(x):\n\t    return x\n\t```",
        "> ```python\n> def f(x):\n>     return x\n> ```\n",
        "> ```python\n> def f(x):\n>     return x\nThe quotation has ended.",
    ],
)
def test_a_reader_finds_the_same_program(text):
    found = extract_code(text)
    assert found is not None
    assert found.rstrip("\n") == CODE.rstrip("\n")


@pytest.mark.parametrize(
    "code",
    [
        'def f(x):\n    """\n    ```\n    f(1)\n    ```\n    """\n    return x\n',
        "x = '''\n~~~\n'''\n",
        "print('```')\n",
        "# ```python\nx = 1\n",
    ],
)
def test_a_fence_inside_the_program_is_content(code):
    assert extract_code(f"```python\n{code}```") == code


def test_a_fence_at_the_end_of_a_line_closes_a_block_that_nothing_else_closes():
    assert extract_code("```python\nreturn x```\nDone.") == "return x\n"
    assert extract_code("```python\nx = 1  # ```\ny = 2\n```") == "x = 1  # ```\ny = 2\n"


def test_what_is_no_program():
    # CommonMark: the rest of the line is the info string, and three backticks in prose are no fence.
    assert extract_code("```python def f(x):\n    return x\n```") == "    return x\n"
    assert extract_code("```cpp\nint x;\n```\n```text\n3\n```") is None
    assert extract_code("Put it between ```\nand nothing else") is None


def test_blocks_are_read_in_order_with_their_labels():
    text = "```json\n{}\n```\n~~~\na\n```\nb\n~~~\n```py\nc"
    assert fenced_blocks(text) == [("other", "{}\n"), ("", "a\n```\nb\n"), ("python", "c\n")]


@pytest.mark.parametrize(
    "text",
    [
        *(
            "> " * 500_000 + "```",
            "```python\n" * 100_000,
            "`" * 10**6,
            "``` " * 250_000,
            " " * 10**6 + "```",
        ),
        *("- " * 500_000 + "```python", "```python\n" + "x```\n" * 150_000, "```\n1\n```\n" * 90_000),
        *("<|a|>" * 200_000, "```\n" + "(" * 10**6, "1." * 500_000 + "```"),
    ],
    ids=range(11),
)
def test_a_megabyte_takes_no_longer_than_its_length(text):
    start = time.process_time()
    extract_code(text)
    assert time.process_time() - start < 5.0
