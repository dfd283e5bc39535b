"""A module imports from lower ranks only, never sideways between rooms; files stay short; the front door stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "ziggurat"
FILES = sorted(SOURCE.rglob("*.py"))
RANKS = {
    "cli": 7,
    "pipeline": 6,
    "train": 5,
    "evaluate": 4,
    "systems": 3,
    "objectives": 2,
    "checkpoint": 2,
    "text": 1,
    "data": 1,
    "nn": 1,
}
"""Rooms; every other file at the top is of rank 0, and those may import each other."""
LONGEST = 400
NO_TORCH = ("text", "data")


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in RANKS else ""


def imports(tree: ast.AST) -> list[tuple[int, str]]:
    """(line, module) of every import, inside functions too, but not under `if TYPE_CHECKING`."""
    found: list[tuple[int, str]] = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for other in node.orelse:
                found += imports(other)
        elif isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: relative import"
            module = node.module or ""
            found += [(node.lineno, f"{module}.{a.name}" if module == "ziggurat" else module) for a in node.names]
        else:
            found += imports(node)
    return found


def broken(own: str, code: str) -> list[str]:
    """What `own` (ziggurat.room.file) may not import but does."""
    here, wrong = room(own), []
    for line, module in imports(ast.parse(code)):
        there = room(module)
        if module.split(".")[0] == "torch" and here in NO_TORCH:
            wrong.append(f"line {line}: {here} imports torch")
        if module.split(".")[0] != "ziggurat" or there == here:
            continue
        if own == "ziggurat" or RANKS.get(there, 0) >= RANKS.get(here, 0) > 0 or (not here and there):
            wrong.append(f"line {line}: {here or own} (rank {RANKS.get(here, 0)}) imports {module} (rank {RANKS.get(there, 0)})")
    return wrong


def name_of(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_ranks_and_length(path: Path) -> None:
    code = path.read_text(encoding="utf-8")
    name = name_of(path)
    if name != "ziggurat":  # the front door opens rooms only when they are asked for
        assert not broken(name, code)
    lines = code.count("\n")
    assert lines <= LONGEST, f"{lines} lines; split it by what its parts do"


@pytest.mark.parametrize(
    "own, code, wrong",
    [
        ("ziggurat.nn.heads", "from ziggurat.train.recipe import Recipe", True),
        ("ziggurat.nn.heads", "def f():\n    import ziggurat.train.recipe", True),
        ("ziggurat.nn.heads", "from ziggurat import train", True),
        ("ziggurat.nn.heads", "from ziggurat.data.cut import windows", True),
        ("ziggurat.nn.heads", "if TYPE_CHECKING:\n    from ziggurat.train.recipe import Recipe", False),
        ("ziggurat.nn.heads", "from ziggurat.nn.loss import x\nfrom ziggurat.types import y\nimport torch", False),
        ("ziggurat.data.cut", "def f():\n    from torch import nn", True),
        ("ziggurat.config", "from ziggurat.nn import spec", True),
        ("ziggurat.config", "from ziggurat.errors import UserError", False),
        ("ziggurat.objectives.base", "from ziggurat.checkpoint import format", True),
        ("ziggurat.train.loop", "from ziggurat.evaluate import scores", False),
        ("ziggurat.evaluate.scores", "import ziggurat.cli", True),
    ],
)
def test_the_rule_can_fail(own: str, code: str, wrong: bool) -> None:
    assert bool(broken(own, code)) is wrong


def test_the_front_door_is_light() -> None:
    script = "import ziggurat, sys; sys.exit(bool({'torch', 'transformers', 'pydantic'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == 0
