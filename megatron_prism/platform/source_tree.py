"""Where this package lies, and its recipes: beside it in a checkout, inside it when installed from a wheel.

No other module looks for files outside its own room, so moving a room breaks nothing.
"""

from __future__ import annotations

from pathlib import Path

from megatron_prism.errors import ConfigError

PACKAGE = Path(__file__).resolve().parents[1]
# What has to be on a process's path for `import megatron_prism`.
ROOT = PACKAGE.parent
# A wheel holds nothing but packages, so it has the folder under the second name (setup.py).
RECIPES = (ROOT / "recipes", PACKAGE / "_recipes")


def recipes_folder() -> Path:
    """The folder with a `.py` file per recipe and `mixtures/`.

    Raises:
        ConfigError: when the installation has lost it.
    """
    for folder in RECIPES:
        if (folder / "shoebox.py").is_file():
            return folder
    raise ConfigError(f"{PACKAGE}: the recipes that belong to this package are missing; install it again")
