"""Prompt templates: `{name}` stands for a column, every other brace for itself.

`{{name}}` writes `{name}`. Braces around anything but a name are text, so that `\\boxed{}` needs no escape. A template
is filled in one pass: braces in a question are never read again.
"""

from __future__ import annotations

import re
from collections.abc import Callable

_PLACE = re.compile(r"\{\{(\w+)\}\}|\{([^\W\d]\w*)\}")


def placeholders(template: str) -> list[str]:
    """The columns that a template names, in the order of their first use."""
    return list(dict.fromkeys(match[2] for match in _PLACE.finditer(template) if match[2]))


def fill(template: str, value: Callable[[str], str]) -> str:
    """The template with `value(name)` in place of each `{name}`."""
    return _PLACE.sub(lambda match: value(match[2]) if match[2] else f"{{{match[1]}}}", template)
