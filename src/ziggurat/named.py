"""`package.module:Name` in a recipe: a class that lives outside the package, found by its import path."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from typing import Any


def load_named(path: str) -> Any:
    """What `package.module:Name` names; the folder the command was given in is searched too, last.

    Raises:
        ValueError: there is no such module, or nothing of that name in it. Mistakes inside the module keep their traceback.
    """
    module, _, name = path.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found = importlib.import_module(module)
    except ImportError as e:
        raise ValueError(f"cannot import '{module}' ({e}); name a module of an installed package or of this folder") from None
    if not hasattr(found, name):
        near = difflib.get_close_matches(name, vars(found), 1)
        raise ValueError(f"module '{module}' has no '{name}'" + (f"; did you mean '{near[0]}'?" if near else ""))
    return getattr(found, name)


def named(path: str) -> Any:
    """The same, or None where `path` is no import path or names nothing: the check of the value says what is wrong."""
    try:
        return load_named(path) if ":" in path else None
    except ValueError:
        return None
