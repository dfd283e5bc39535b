"""The documents say what is true: Python blocks run, shown outputs are real, recipes resolve, links and names exist.

`python tests/test_docs.py` runs all blocks and writes the outputs into the pages anew, and the list of recipe fields.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import ziggurat
from ziggurat.config import load
from ziggurat.train.recipe import Recipe

ROOT = Path(__file__).parents[1]
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), *sorted(ROOT.glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.M | re.S)


class Block(NamedTuple):
    """A fenced block, and the `text` block right behind it: what it prints."""

    language: str
    file: str
    """Of `file=NAME` behind the language: the block is written there instead of run."""
    code: str
    shown: str | None
    line: int


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text("utf-8")
    for found in BLOCK.finditer(text):
        file = re.search(r"file=(\S+)", found[2])
        yield Block(found[1], file[1] if file else "", found[3], found[4], text.count("\n", 0, found.start()) + 2)


def run(page: Path) -> Iterator[tuple[Block, str]]:
    """All blocks of a page in order, in the current folder, with what the Python ones print."""
    names: dict[str, object] = {"__name__": page.stem}
    for block in blocks(page):
        printed = io.StringIO()
        if block.file:
            Path(block.file).parent.mkdir(parents=True, exist_ok=True)
            Path(block.file).write_text(block.code, "utf-8")
        elif block.language == "python":
            code = compile("\n" * (block.line - 1) + block.code, str(page), "exec")
            with contextlib.redirect_stdout(printed):
                exec(code, names)
        yield block, printed.getvalue()


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty folder to run in; what is imported from it is forgotten afterwards."""
    known = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    yield
    for name in set(sys.modules) - known:
        if name.split(".")[0] == "my_lab":
            del sys.modules[name]


RUNNABLE = [page for page in PAGES if any(b.language == "python" and not b.file for b in blocks(page))]


@pytest.mark.parametrize("page", RUNNABLE, ids=lambda p: p.stem)
def test_blocks_run_and_print_what_is_shown(page: Path, elsewhere: None) -> None:
    for block, printed in run(page):
        if block.shown is not None:
            assert printed == block.shown, f"{page.name}:{block.line}"


def test_a_wrong_output_is_noticed(tmp_path: Path, elsewhere: None) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\nx = 2\n```\n\n```python\nprint(x + 1)\n```\n\n```text\n4\n```\n", "utf-8")
    assert [(b.shown, printed) for b, printed in run(page)] == [(None, ""), ("4\n", "3\n")]


RECIPES = [(page, b) for page in PAGES for b in blocks(page) if b.language == "yaml" and b.code.startswith("name:")]


@pytest.mark.parametrize("page, block", RECIPES, ids=lambda x: x.stem if isinstance(x, Path) else str(x.line))
def test_recipes_in_the_documents_resolve(page: Path, block: Block, elsewhere: None) -> None:
    for other in blocks(page):
        if other.file:
            Path(other.file).parent.mkdir(parents=True, exist_ok=True)
            Path(other.file).write_text(other.code, "utf-8")
    Path("recipe.yaml").write_text(block.code, "utf-8")
    load("recipe.yaml", model=Recipe).resolved()


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_links_and_named_files_exist(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
    for name in re.findall(r"`((?:src|docs|recipes|tests|benchmarks)/[\w./-]+\.\w+)`", text):
        assert (ROOT / name).exists(), f"{page.name} names {name}"
    for name in re.findall(
        r"`((?:types|context|config|tree|named|errors|log|cli|(?:text|data|nn|objectives|systems|checkpoint|train|evaluate|pipeline)/\w+)\.py)`",
        text,
    ):
        assert (ROOT / "src" / "ziggurat" / name).exists(), f"{page.name} names {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_named_parts_of_the_python_api_exist(page: Path) -> None:
    for name in re.findall(r"\bzg\.(\w+)", page.read_text("utf-8")):
        assert name in ziggurat.__all__, f"{page.name} uses zg.{name}"


def fields_page(script: str = "recipe_fields") -> str:
    spec = importlib.util.spec_from_file_location(script, ROOT / "docs" / f"{script}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page: str = module.page()
    return page


def test_visibilities_are_drawn_from_the_code() -> None:
    shown = (ROOT / "docs" / "visibility.md").read_text("utf-8")
    assert shown == fields_page("draw_visibility"), "run: python docs/draw_visibility.py > docs/visibility.md"


def test_recipe_fields_are_up_to_date() -> None:
    shown = (ROOT / "docs" / "recipe-fields.md").read_text("utf-8")
    assert shown == fields_page(), "run: python docs/recipe_fields.py > docs/recipe-fields.md"


def test_every_field_of_a_recipe_is_explained() -> None:
    assert not re.findall(r"^\| `.*\| *\|$", fields_page(), re.M)


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").rglob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_recipes_resolve_without_their_files(recipe: Path, elsewhere: None) -> None:
    load(recipe, model=Recipe).resolved()


if __name__ == "__main__":
    import tempfile

    for page in RUNNABLE:
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            sys.path.append(folder)
            text, at = page.read_text("utf-8"), 0
            for block, printed in run(page):
                if block.shown is not None:
                    at = text.index(f"{block.code}```\n\n```text\n", at) + len(block.code) + 13
                    text = text[:at] + printed + text[at + len(block.shown) :]
            os.chdir(ROOT)
            page.write_text(text, "utf-8")
    (ROOT / "docs" / "recipe-fields.md").write_text(fields_page(), "utf-8")
