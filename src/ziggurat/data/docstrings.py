"""The English text that installed packages carry: their documentation strings, read through `ast`.

Nothing is imported or executed: package folders are found by name, their files parsed. The same text gives a labelled
task of its own: which words of a sentence stood in backticks.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import os
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from ziggurat.data.reading import nearest
from ziggurat.errors import UserError, check
from ziggurat.types import Document, Mark

PACKAGES = ("python", "numpy", "networkx", "sympy", "torch")
"""What is read by default. `python` is the standard library and the language reference in `pydoc_data.topics`."""

SHORTEST = 40
"""Characters; shorter docstrings ("See the base class.") are left out."""

PASSED_OVER = {"test", "tests", "site-packages", "dist-packages", "idlelib", "lib2to3", "__pycache__"}
"""Folders without documentation worth reading, or of other packages."""

WORDS = (6, 60)
"""Fewest and most words of a sentence in the backticks task."""


def docstrings(packages: Sequence[str] = PACKAGES, exclude: Sequence[str] = ()) -> Iterator[Document]:
    """One document per docstring of at least 40 characters, exact duplicates removed, in a fixed order.

    Fields: `package`, `module`, `name` (dotted, within the module), `kind` (module, class, function, topic).
    Raises `UserError` for a package that is not installed and for an excluded one that is not among `packages`.
    """
    for name in exclude:
        check(
            name in packages,
            f"exclude: {name!r} is not among the packages{nearest(name, packages)}",
            f"packages: {', '.join(packages)}",
        )
    seen: set[str] = set()
    for package in packages:
        if package in exclude:
            continue
        for document in _of_package(package):
            text = document.texts["text"]
            if text not in seen:
                seen.add(text)
                yield document


def package_folder(package: str) -> Path:
    """The folder (or single file) of an installed package, found without importing it."""
    if package == "python":
        return Path(sysconfig.get_paths()["stdlib"])
    try:
        # A name without dots is looked up on the path only; a dotted one would import its parent.
        spec = importlib.util.find_spec(package) if "." not in package else None
    except (ImportError, ValueError):
        spec = None
    if spec is not None and spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations)))
    if spec is not None and spec.origin and spec.origin.endswith(".py"):
        return Path(spec.origin)
    raise UserError(
        f"docstrings: there is no installed package {package!r}{nearest(package, PACKAGES)}",
        "name an installed top-level package, or python for the standard library",
    )


@lru_cache(maxsize=16)
def _of_package(package: str) -> tuple[Document, ...]:
    """All docstrings of a package. Kept, because every split and the tokenizer ask for them again (14 MB in all)."""
    root = package_folder(package)
    found: list[Document] = []
    for path in [root] if root.is_file() else _python_files(root):
        source = path.read_bytes()
        place = path.name if root.is_file() else path.relative_to(root).as_posix()
        if b'"""' not in source and b"'''" not in source:
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tree = ast.parse(source)
        except (SyntaxError, ValueError, RecursionError):
            continue  # templates and files for other Python versions
        parts = [p for p in place.removesuffix(".py").split("/") if p != "__init__"]
        module = ".".join(parts if package == "python" or root.is_file() else [package, *parts])
        topics = package == "python" and module == "pydoc_data.topics"
        for line, name, kind, text in _topics(tree) if topics else _walk(tree):
            if len(text) >= SHORTEST and "\0" not in text:
                fields = {"package": package, "module": module, "name": name, "kind": kind}
                found.append(Document({"text": text}, f"{package}/{place}:{line}", (), fields))
    return tuple(found)


def _python_files(root: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(set(folders) - PASSED_OVER)
        for name in sorted(names):
            if name.endswith(".py"):
                yield Path(folder, name)


def _walk(tree: ast.Module) -> Iterator[tuple[int, str, str, str]]:
    """Line, dotted name, kind and cleaned text of each docstring, in the order of the file."""
    stack: list[tuple[ast.AST, str]] = [(tree, "")]
    while stack:
        node, name = stack.pop()
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            if not isinstance(node, ast.Module):
                name = f"{name}.{node.name}".lstrip(".")
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
                kind = {ast.Module: "module", ast.ClassDef: "class"}.get(type(node), "function")
                text = inspect.cleandoc(first.value.value).strip()
                if text.isascii() or _encodes(text):
                    yield first.lineno, name, kind, text
        below: list[ast.AST] = []
        for branch in ("body", "handlers", "orelse", "finalbody"):
            children = getattr(node, branch, None)
            if isinstance(children, list):
                below += children
        stack += [(child, name) for child in reversed(below)]


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _topics(tree: ast.Module) -> Iterator[tuple[int, str, str, str]]:
    """The language reference that `help("if")` shows: one long dict of strings."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values):
                if isinstance(key, ast.Constant) and isinstance(value, ast.Constant) and isinstance(value.value, str):
                    yield value.lineno, str(key.value), "topic", value.value.strip()


def packages_version(packages: Sequence[str]) -> dict[str, str]:
    """The version of each package, to tell one state of this corpus from another."""
    from importlib.metadata import PackageNotFoundError, version

    found: dict[str, str] = {}
    for package in packages:
        try:
            found[package] = sys.version.split()[0] if package == "python" else version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found


# The backticks task

SPAN = re.compile(r"(?P<role>:[A-Za-z][\w:+.-]*:)?(?P<open>`{1,2})(?P<code>[^`\n]+(?:\n[^`\n]+)?)(?P=open)(?P<link>_{0,2})(?!`)")
SENTENCE_END = re.compile(r"""(?<=[.!?])["')\]]*\s+(?=["'(\[\x02]*[A-Z0-9\x02])""")
ABBREVIATION = re.compile(r"(?:\b(?:e\.g|i\.e|cf|vs|etc|resp|Fig|Eq|Sec|no|al|St|Dr|Prof|[A-Z])\.)$")
PROSE = re.compile(r"^[A-Z\x02(\"']")
MARKUP = re.compile(r"^\s*(>>>|\.\.\s|\.\.\.|:\w+|[=\-~^#*+]{3,}|\[\d|[-*+•]\s|\d+[.)]\s|\|)")
OPEN, CLOSE = "\x02", "\x03"
"""Stand for the two ends of a code span while the text is cut into sentences."""


def backticks(package: str) -> Iterator[Document]:
    """Sentences of a package's docstrings that hold words in backticks; the backticks are gone, the words labelled.

    One mark per word (whitespace-separated), `code` if any of it stood in backticks and `text` otherwise. Sentences
    have 6 to 60 words, at least one of either label, and no two are equal. Roles (``:func:`` before the backticks)
    lose their name; sentences with formulas (``:math:``) and links are left out.
    Fields: `document` (the id of the docstring the sentence stands in), `module`.
    """
    seen: set[str] = set()
    for source in docstrings([package]):
        for number, sentence in enumerate(_sentences(source.texts["text"])):
            text, marks = _unmark(sentence)
            labels = {mark.label for mark in marks}
            if WORDS[0] <= len(marks) <= WORDS[1] and len(labels) == 2 and text not in seen and "`" not in text:
                seen.add(text)
                fields = {"document": source.id, "module": source.fields["module"]}
                yield Document({"text": text}, f"{source.id}#{number}", marks, fields)


def _sentences(text: str) -> Iterator[str]:
    """Sentences of running prose, code spans between OPEN and CLOSE. Doctests, headings, lists, formulas stay out."""
    for paragraph in re.split(r"\n\s*\n", text):
        lines = paragraph.split("\n")
        if any(MARKUP.match(line) for line in lines) or "`" not in paragraph:
            continue
        indent = {len(line) - len(line.lstrip()) for line in lines}
        if len(indent) > 1:
            continue  # definition lists and literal blocks
        body = " ".join(SPAN.sub(_span, paragraph).split())
        pieces = SENTENCE_END.split(body)
        held = ""
        for piece in pieces:
            held = f"{held} {piece}".strip()
            if ABBREVIATION.search(held):
                continue
            if OPEN in held and "\x04" not in held and PROSE.match(held) and held.rstrip("\"')").endswith((".", "!", "?")):
                yield held
            held = ""


def _span(match: re.Match[str]) -> str:
    role, code = match["role"] or "", match["code"].strip()
    if "math" in role or match["link"] or not code:
        return "\x04"  # spoils the sentence
    if role:
        code = re.sub(r"\s*<[^>]*>$", "", code).lstrip("~.!")
    return f"{OPEN}{' '.join(code.split())}{CLOSE}"


def _unmark(sentence: str) -> tuple[str, tuple[Mark, ...]]:
    """The sentence without its span ends, and a mark for each word."""
    words: list[str] = []
    marks: list[Mark] = []
    at = 0
    inside = False
    for raw in sentence.split(" "):
        code = inside or OPEN in raw
        inside = raw.rfind(OPEN) > raw.rfind(CLOSE) or (inside and CLOSE not in raw)
        word = raw.replace(OPEN, "").replace(CLOSE, "")
        if word:
            words.append(word)
            marks.append(Mark(at, at + len(word), "code" if code else "text"))
            at += len(word) + 1
    return " ".join(words), tuple(marks)
