"""One spelling for each notation: Unicode signs become LaTeX commands, and what only changes the look is removed.

`normalize` gives text in which
- every unusual space, dash, digit or letter form is the ordinary one, and invisible characters are gone;
- fractions, roots and binomials have braced arguments (`\\frac12` is `\\frac{1}{2}`), and each relation has one name;
- the content of `\\text{...}` and its relatives stands between double quotes, so that words are not read as products;
- dollar signs that delimit formulas are gone, and one that is money is `¤`.
"""

from __future__ import annotations

import re

from megatron_prism.verification.answers.braces import closing_brace
from megatron_prism.verification.answers.signs import in_latex

# Sampled text passes through JSON or Python strings in which `\b`, `\f`, `\t` and `\r` are escapes, not commands.
_LOST_BACKSLASHES = (
    ("\x08oxed", "\\boxed"),
    ("\x0crac", "\\frac"),
    ("\x0cbox", "\\fbox"),
    ("\text", "\\text"),
)

_TEXT = "text(?:bf|it|rm|sf|tt|normal|sc)?|math(?:rm|bf|sf|it|tt)|mbox|hbox|bf|rm|it"
_TEXT_COMMAND = re.compile(rf"\\(?:{_TEXT}|operatorname\*?|ce)\s*\{{")
_BARE_STYLE = re.compile(
    r"\\(?:left|right|middle)\s*\.(?!\d)"
    r"|\\(?:tiny|small|normalsize|large|Large|LARGE|huge|Huge|sf|tt|em|cal|boldmath|centering|bf|rm|it|bfseries|displaystyle|textstyle|scriptstyle|limits|nolimits|left|right|middle|[bB]igg?[lrm]?)"
    r"(?![A-Za-z])"
)
_UNBRACED_STYLE = re.compile(r"\\math(?:bf|rm|it|sf)\s+([A-Za-z])(?![A-Za-z])")
_TRANSPARENT = re.compile(
    r"\\(?:boxed|fbox|framebox|underline|ensuremath|boldsymbol|bm|pmb|mathcal|displaylines|mathopen|mathclose)\s*\{"
)
_INVISIBLE_GROUP = re.compile(r"\\(?:[hv]?phantom|label|tag\*?|color|hspace\*?|vspace\*?|kern)\s*\{")
_TEXT_COLOR = re.compile(r"\\(?:textcolor|colorbox)\s*\{[^{}]*\}\s*\{")
_SPACE = re.compile(
    r"(?<!\\)\\[,;:> ]|\\(?:q?quad|enspace|(?:thin|med|thick)?space|allowbreak|hfill|break)(?![A-Za-z])|~|\s+"
)
_ESCAPES = {"\\!": "", "{,}": ",", "{.}": ".", "{:}": ":", "\\%": "%", "\\#": "#"}
# One name of each sign, and the other names that it has.
_NAMES = {
    "\\frac": "dfrac tfrac cfrac nicefrac sfrac",
    "\\binom": "dbinom tbinom",
    "\\le": "leq leqslant",
    "\\ge": "geq geqslant",
    "\\ne": "neq",
    "<": "lt",
    ">": "gt",
    "\\emptyset": "varnothing",
    "\\infty": "infin",
    "^\\circ": "degree textdegree",
    "\\epsilon": "varepsilon",
    "|": "mid lvert rvert vert",
    "\\phi": "varphi",
    "\\mathbb{R}": "R reals",
    "\\to": "rightarrow longrightarrow implies Rightarrow",
    "\\{": "lbrace",
    "\\}": "rbrace",
    "[": "lbrack",
    "]": "rbrack",
    "/": "div",
    "*": "ast",
    "\\wedge": "land",
    "\\vee": "lor",
    ":": "colon",
    "\\mod": "bmod",
    "\\log_{10}": "lg",
    "\\setminus": "backslash",
    "\\approx": "simeq",
    "\\ldots": "dots",
    " GBP ": "pounds",
    " EUR ": "euro",
    " angstrom ": "AA",
    "=": "iff",
}
_RENAMED = {other: name for name, others in _NAMES.items() for other in others.split()}
_RENAME = re.compile(r"\\([A-Za-z]+)")
_SLASHED = re.compile(r"(?:\{\})?\^\{?(\d+)\}?\s*/\s*_\{?(\d+)\}?")
_DOTTED = re.compile(r"\.(\d*)\\dot\s*\{?(\d)\}?(?:(\d*)\\dot\s*\{?(\d)\}?)?")
_ORDINAL = re.compile(r'(?<=\d)\s*(?:\^\s*)?\{?\s*"?\s*(?:st|nd|rd|th)\s*"?\s*\}?\s*$')
_CIS = re.compile(r"\\cis\s*[({]?\s*([^(){}]+?)\s*[)}]?\s*$")
_CHOOSE = re.compile(r"\{([^{}]*?)\\choose(?![A-Za-z])\s*([^{}]*)\}")
_TEN_POWER = re.compile(r"(?<=\d)\s*[xX]\s*(?=10\s*\^)")
# "k is a whole number" after a family of solutions.
_WHOLE = re.compile(r"[,;]? ?\(?(?:\"? ?(?:where|for) ?\"?)? ?([a-z]) ?\\in ?\\mathbb ?\{?[ZRN]\}? ?\)?$")
_OVER = re.compile(r"\{([^{}]*?)\\over(?![A-Za-z])\s*([^{}]*)\}")
_QUOTED = re.compile(r"``([^`']*)''")
# A Greek letter that is part of a unit: \\mu m, k\\Omega.
_MICRO = re.compile(r'(?<=[\d\s}])\s*\\mu\s*("?)\s*(?=(?:m|s|g|F|C|A|V|H|L|l|W|J|N|T|mol|Hz)(?![A-Za-z]))')
_OHM = re.compile(r'(?<=[\d\s}kM"])\\Omega(?=\s*("|$))')
_ENVIRONMENT = re.compile(
    r"\\(?:begin|end)\s*\{(?:aligned|align|gathered|gather|equation|split|displaymath)\*?\}"
)
_SEGMENT = re.compile(r"\\overline\s*\{\s*([A-Z]{2})\s*\}")
_ANGLE = r"\d+(?:\.\d+)?"
_ANGLE_FUNCTION = re.compile(
    rf"\\(sin|cos|tan|cot|sec|csc)(\^\{{?\d\}}?)?\s*"
    rf"(?:\(\s*({_ANGLE})\s*°\s*\)|\{{\s*({_ANGLE})\s*°\s*\}}|({_ANGLE})\s*°)"
)
_DEGREES = re.compile(r"\s*(?:\{\})?\^\s*\{?\s*\\circ\s*\}?\s*")
_ONE_TOKEN = r"\d|[A-Za-z]|\\[A-Za-z]+"
_ARGUMENTS = {"\\frac": 2, "\\binom": 2, "\\sqrt": 1}
_TAKES_ARGUMENTS = re.compile(r"\\(?:frac|binom|sqrt)(?![A-Za-z])")
_TOKEN = re.compile(rf"\s*({_ONE_TOKEN})")
_WORD_FUNCTIONS = re.compile(
    r"(?<![A-Za-z\\])(arcsin|arccos|arctan|sin|cos|tan|ln|log|exp|sqrt|pi|infinity|infty|"
    r"alpha|beta|gamma|theta|lambda)(?![A-Za-z])"
)
_PYTHON_POWER = re.compile(r"(?<=[\w)}])\s*\*\*\s*(?=[\w({\\-])")
_FUNCTION_NAMES = "sin cos tan cot sec csc arcsin arccos arctan ln log exp gcd"
_FUNCTIONS = frozenset(_FUNCTION_NAMES.split())
# Single letters that constants and differentials have when they are set upright.
_UPRIGHT_LETTERS = ("e", "i", "d", "j")


def normalize(text: str) -> str:
    """`text` in one spelling (see the module's head), with single spaces. Meaning is never added."""
    for wrong, right in _LOST_BACKSLASHES:
        text = text.replace(wrong, right)
    text = in_latex(text)
    text = _money(text)
    text = _QUOTED.sub(r" \1 ", _ENVIRONMENT.sub(" ", text))
    if "\\begin" not in text:
        text = text.replace("\\&", "\x00").replace("&", " ").replace("\x00", "&")
    text = _groups(_UNBRACED_STYLE.sub(r"\1 ", text))
    for written, meant in _ESCAPES.items():
        text = text.replace(written, meant)
    text = _BARE_STYLE.sub(" ", text)
    text = _RENAME.sub(lambda match: _RENAMED.get(match.group(1), match.group(0)) + _gap(match), text)
    text = text.replace("<=", "\\le ").replace(">=", "\\ge ").replace("!=", "\\ne ").replace("\\_", "_")
    text = _PYTHON_POWER.sub("^", text).replace("**", " ").replace("`", " ")
    text = _WORD_FUNCTIONS.sub(lambda match: _function(match.group(1)), text)
    text = _SEGMENT.sub(r"\1", _OVER.sub(r"\\frac{\1}{\2}", text))
    text = _CHOOSE.sub(r"\\binom{\1}{\2}", _TEN_POWER.sub(r" \\times ", text))
    text = _family(text)
    text = _SLASHED.sub(r"\\frac{\1}{\2}", text)
    text = _DOTTED.sub(
        lambda match: f".{match[1]}\\overline{{{''.join(filter(None, match.groups()[1:]))}}}", text
    )
    text = _ORDINAL.sub("", text)
    text = _CIS.sub(r"(\\cos \1 + i \\sin \1)", _DEGREES.sub("° ", text))
    text = _ANGLE_FUNCTION.sub(_in_radians, text)
    text = _braced(text)
    text = re.sub(r'"\s*"', " ", _OHM.sub("Ω", _MICRO.sub(r" \1µ", text)))
    return _SPACE.sub(" ", text).strip()


def _family(text: str) -> str:
    """`\\frac{\\pi}{4} + k\\pi, k \\in \\mathbb{Z}` without the condition and with the letter n."""
    if "\\in" not in text:
        return text
    text = " ".join(text.split())
    match = _WHOLE.search(text)
    if match is None or match.start() == 0:
        return text
    body, letter = text[: match.start()], match.group(1)
    return re.sub(rf"(?<![A-Za-z\\]){letter}(?![A-Za-z])", "n", body) if "\\pi" in body else body


def _gap(match: re.Match[str]) -> str:
    """A space after a renamed command whose new name would join with the next letter."""
    new = _RENAMED.get(match.group(1))
    following = match.string[match.end() : match.end() + 1]
    return " " if new is not None and new[-1:].isalpha() and following.isalpha() else ""


def _function(name: str) -> str:
    return "\\infty " if name == "infinity" else f"\\{name} "


def _money(text: str) -> str:
    """Formula delimiters removed; a dollar sign that means money becomes `¤`."""
    text = text.replace("\\$", "¤").replace("£", " GBP ").replace("€", " EUR ")
    for delimiter in ("\\(", "\\)", "\\[", "\\]"):
        text = re.sub(r"(?<!\\)" + re.escape(delimiter), " ", text)
    if text.count("$") % 2 and re.search(r"\$\s*\d|\d\s*\$", text):
        text = re.sub(r"\$(?=\s*\d)|(?<=\d)\$", "¤", text, count=1)
    return text.replace("$", " ")


def _groups(text: str) -> str:
    """Commands with a braced argument that only change the look: their content, or its text between quotes."""
    for _ in range(200):
        found = [
            (match, pattern)
            for pattern in (_TEXT_COMMAND, _TRANSPARENT, _INVISIBLE_GROUP, _TEXT_COLOR)
            if (match := pattern.search(text))
        ]
        if not found:
            return text
        match, pattern = min(found, key=lambda each: each[0].start())
        end = closing_brace(text, match.end() - 1)
        if end is None:
            # Not closed: the rest is the argument, as a reader would take it.
            text = text[: match.start()] + " " + text[match.end() :]
            continue
        content = text[match.end() : end]
        text = text[: match.start()] + _replacement(pattern, match, content) + text[end + 1 :]
    return text


def _replacement(pattern: re.Pattern[str], match: re.Match[str], content: str) -> str:
    if pattern is _INVISIBLE_GROUP:
        return " "
    if pattern is not _TEXT_COMMAND:
        # A box in a box keeps the border between its content and what stands beside it.
        return f" {content} " if "box" in match.group() else content
    name = match.group().strip("\\{ *")
    bare = content.strip()
    if bare in _FUNCTIONS:
        return f"\\{bare} "
    if name == "operatorname":
        return f"\\{bare} " if bare.isalpha() else f" {content} "
    if (
        bare in _UPRIGHT_LETTERS
        or not re.search(r"[A-Za-z]", bare)
        or "\\" in bare
        or "^" in bare
        or "=" in bare
    ):
        return f" {content} " if not bare.isalpha() else bare
    if re.fullmatch(r"[xyzabnkmt]", bare) and name.startswith("math"):
        return bare
    counted = re.match(r"([-+]?\d[\d.,/]*)\s*(?=[A-Za-z])", bare)
    if counted is not None and not re.search(r"\d", bare[counted.end() :]):
        return f' {counted.group(1)} "{bare[counted.end() :]}" '
    return f' "{content}" '


def _in_radians(match: re.Match[str]) -> str:
    name, power, *angles = match.groups()
    angle = next(filter(None, angles))
    return f"\\{name}{power or ''}(\\frac{{{angle} \\cdot \\pi}}{{180}}) "


def _braced(text: str) -> str:
    """`\\frac12`, `\\frac1{2}`, `\\sqrt2` and `\\sqrt(2)` with braces around each argument."""
    position = 0
    while (match := _TAKES_ARGUMENTS.search(text, position)) is not None:
        start = match.end()
        if match.group() == "\\sqrt" and (option := re.match(r"\s*\[[^\[\]]*\]", text[start:])):
            start += option.end()
        for _ in range(_ARGUMENTS[match.group()]):
            opened = re.match(r"\s*[{(]", text[start:])
            token = _TOKEN.match(text, start)
            if opened and (text[start + opened.end() - 1] == "{" or match.group() == "\\sqrt"):
                end = closing_brace(text, start + opened.end() - 1)
                if end is None:
                    break
                inner = text[start + opened.end() : end]
                text = f"{text[:start]}{{{inner}}}{text[end + 1 :]}"
                start += len(inner) + 2
            elif token:
                text = f"{text[:start]}{{{token.group(1)}}}{text[token.end() :]}"
                start += len(token.group(1)) + 2
            else:
                break
        position = match.end()
    return text
