"""The folder of this package, and of its recipes: next to the package in a checkout, inside it in a wheel.

No other module looks for files outside its own folder, so folders can be moved.
"""

from __future__ import annotations

from pathlib import Path

from megatron_prism.errors import ConfigError

PACKAGE = Path(__file__).resolve().parents[1]
# The folder that must be on the Python path for `import megatron_prism`.
ROOT = PACKAGE.parent
# A wheel contains only packages, so it has the folder under the second name (setup.py).
RECIPES = (ROOT / "recipes", PACKAGE / "_recipes")


def recipes_folder() -> Path:
    """The folder with a `.py` file per recipe and `mixtures/`.

    Raises:
        ConfigError: if the installation is incomplete.
    """
    for folder in RECIPES:
        if (folder / "shoebox.py").is_file():
            return folder
    raise ConfigError(f"{PACKAGE}: the recipes of this package are missing; install the package again")
