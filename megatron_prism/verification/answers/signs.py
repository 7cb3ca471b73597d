"""Unicode signs as LaTeX: Greek letters, relations, roots, raised and lowered digits, fractions, dashes and spaces."""

from __future__ import annotations

import re
import unicodedata

# A check mark or the end-of-proof sign says nothing about the answer.
_CHECK_MARKS = re.compile(r"[✓✔✅☑■□∎]|\\(?:checkmark|square|blacksquare|qed|Box|therefore)(?![A-Za-z])|∴")
_INVISIBLE = dict.fromkeys([0x200B, 0x200C, 0x200D, 0x2060, 0xFEFF, 0x00AD, 0x200E, 0x200F, 0x2061, 0x2062])
_DASHES = dict.fromkeys([0x2010, 0x2011, 0x2012, 0x2013, 0x2014, 0x2212, 0xFE63, 0xFF0D], "-")
_SIGNS = {
    **{
        "×": "\\times ",
        "·": "\\cdot ",
        "⋅": "\\cdot ",
        "∙": "\\cdot ",
        "∗": "*",
        "÷": "/",
        "∕": "/",
        "⁄": "/",
    },
    **{"≤": "\\le ", "⩽": "\\le ", "≦": "\\le ", "≥": "\\ge ", "⩾": "\\ge ", "≧": "\\ge ", "≠": "\\ne "},
    **{
        "≈": "\\approx ",
        "≡": "\\equiv ",
        "±": "\\pm ",
        "∓": "\\mp ",
        "∞": "\\infty ",
        "°": "^\\circ ",
        "º": "^\\circ ",
    },
    **{
        "∪": "\\cup ",
        "∩": "\\cap ",
        "∅": "\\emptyset ",
        "∈": "\\in ",
        "∖": "\\setminus ",
        "∣": "|",
        "∶": ":",
    },
    **{"ℝ": "\\mathbb{R}", "ℤ": "\\mathbb{Z}", "ℕ": "\\mathbb{N}", "ℚ": "\\mathbb{Q}", "ℂ": "\\mathbb{C}"},
    **{"→": "\\to ", "⟶": "\\to ", "⟨": "\\langle ", "⟩": "\\rangle ", "〈": "\\langle ", "〉": "\\rangle "},
    **{"⌊": "\\lfloor ", "⌋": "\\rfloor ", "⌈": "\\lceil ", "⌉": "\\rceil ", "∑": "\\sum ", "∏": "\\prod "},
    **{"∫": "\\int ", "′": "'", "’": "'", "‘": "'", "“": "", "”": "", '"': "", "。": ".", "…": "\\ldots "},
    **{"µ": "\\mu ", "Ω": "\\Omega ", "Å": " angstrom ", "ϕ": "\\phi ", "ϵ": "\\epsilon ", "∆": "\\Delta "},
}
# In the order of Unicode from U+03B1; "-" stands for letters that LaTeX writes as Latin ones.
_GREEK = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi - pi rho - sigma tau upsilon phi chi psi "
    "omega"
)
_CAPITALS = {"Gamma": "Γ", "Delta": "Δ", "Theta": "Θ", "Lambda": "Λ", "Xi": "Ξ", "Pi": "Π", "Sigma": "Σ"}
_CAPITALS |= {"Phi": "Φ", "Psi": "Ψ", "Omega": "Ω"}
_SIGNS |= {chr(0x3B1 + place): f"\\{name} " for place, name in enumerate(_GREEK.split()) if name != "-"}
_SIGNS |= {letter: f"\\{name} " for name, letter in _CAPITALS.items()}
_RAISED = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱˣ", "0123456789+-()nix", strict=True))
_LOWERED = dict(zip("₀₁₂₃₄₅₆₇₈₉₊₋ₙₓᵢ", "0123456789+-nxi", strict=True))
_RAISED_RUN = re.compile(f"[{''.join(_RAISED)}]+")
_LOWERED_RUN = re.compile(f"[{''.join(_LOWERED)}]+")
_ROOT_SIGN = re.compile(r"([√∛∜])\s*(\{|\(|\d+(?:\.\d+)?|[A-Za-z]|\\[A-Za-z]+)")
_ROOTS = {"√": "\\sqrt", "∛": "\\sqrt[3]", "∜": "\\sqrt[4]"}


def in_latex(text: str) -> str:
    """`text` with its Unicode signs as LaTeX, ordinary digits, letters, dashes and spaces, and nothing invisible."""
    text = "".join(_compatible(character) for character in unicodedata.normalize("NFC", text))
    text = text.translate(_INVISIBLE).translate(_DASHES)
    text = _RAISED_RUN.sub(lambda run: "^{" + "".join(_RAISED[each] for each in run.group()) + "}", text)
    text = _LOWERED_RUN.sub(lambda run: "_{" + "".join(_LOWERED[each] for each in run.group()) + "}", text)
    text = _ROOT_SIGN.sub(_root, text)
    return _CHECK_MARKS.sub(" ", "".join(_SIGNS.get(character, character) for character in text))


def _compatible(character: str) -> str:
    """Vulgar fractions, full-width forms, mathematical letters and unusual spaces in their ordinary form."""
    if character < "\x80" or character in _SIGNS or character in _RAISED or character in _LOWERED:
        return character
    if character.isspace():
        return " "
    plain = unicodedata.normalize("NFKC", character)
    if "⁄" in plain:
        top, _, bottom = plain.partition("⁄")
        return f"\\frac{{{top}}}{{{bottom}}}" if bottom else character
    # Ligatures and the like keep their form; only one-to-one forms are replaced.
    return plain if len(plain) == 1 else character


def _root(match: re.Match[str]) -> str:
    command, argument_start = _ROOTS[match.group(1)], match.group(2)
    return command + (argument_start if argument_start in "{(" else f"{{{argument_start}}}")
