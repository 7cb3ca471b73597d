"""Chemical formulas and electron configurations: case matters, and subscripts may be written in any way."""

from __future__ import annotations

import re

_SYMBOLS = (
    "H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr Rb Sr Y Zr "
    "Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu Hf Ta W Re Os Ir "
    "Pt Au Hg Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U Np Pu Am Cm Bk Cf Es Fm Md No Lr Rf Db Sg Bh Hs Mt Ds Rg Cn Nh Fl "
    "Mc Lv Ts Og"
)
_ELEMENTS = _SYMBOLS.split()
_ELEMENT = "(?:" + "|".join(sorted(_ELEMENTS, key=len, reverse=True)) + ")"
_PART = rf"(?:{_ELEMENT}\d*|[()\[\]]\d*|\.\d*)"
_FORMULA = re.compile(rf"\d*{_PART}+(?:\^?\d*[+-]+|\^[+-]?\d+[+-]?)?(?:\((?:s|l|g|aq)\))?")
_ORBITAL = re.compile(r"(?:\[[A-Z][a-z]?\])?(?:[1-7][spdf]\d{1,2})+")
# Words that could be formulas.
_ENGLISH = "NO No YES Yes TRUE FALSE SO So OF IN In AS As AT At US HIS I A"
_WORDS = frozenset(_ENGLISH.split())


def formula(text: str) -> str | None:
    """The formula that normalized `text` is, in one spelling (`H_{2}O` is `H2O`), or None.

    A formula contains a digit or at least two elements: `C` alone is a letter, and `No` is a word.
    """
    plain = re.sub(r"[\"{}_\s~]|\\[,;! ]", "", text).replace("\\cdot", ".").replace("*", ".")
    plain = plain.rstrip(".")
    if _ORBITAL.fullmatch(plain.replace("^", "")):
        return plain.replace("^", "")
    if plain in _WORDS or not _FORMULA.fullmatch(plain) or not re.search("[A-Z]", plain):
        return None
    elements = re.findall(_ELEMENT, plain)
    if plain.isalpha() and (len(elements) < 2 or (plain.isupper() and len(plain) > 3)):
        return None
    return plain.replace("^", "")
