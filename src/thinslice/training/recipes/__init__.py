"""The recipes, one file each: its name, with dashes, is that of the recipe, and its ``RECIPE`` what is run.

To add a recipe, add a file: nothing else lists them. This module imports none of them, so that the command line can
name them all without torch.
"""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from thinslice.errors import ModelRefused

if TYPE_CHECKING:  # the import would bring torch
    from thinslice.training.stages import Recipe


def recipe_names() -> list[str]:
    """Returns the names of all recipes, in alphabetical order.

    Example:
        >>> "no-ground-truth" in recipe_names()
        True
    """
    files = (file for folder in __path__ for file in Path(folder).glob("[a-z]*.py"))
    return sorted({file.stem.replace("_", "-") for file in files})


def load_recipe(name: str) -> "Recipe":
    """Returns a recipe by its name.

    Raises:
        ModelRefused: there is no such recipe.
    """
    if name not in recipe_names():
        raise ModelRefused(
            got=f"recipe {name!r}",
            need=f"one of {', '.join(recipe_names())}",
            next="choose one of them",
            code="unknown-recipe",
        )
    recipe: Recipe = importlib.import_module(f"{__name__}.{name.replace('-', '_')}").RECIPE
    return recipe
