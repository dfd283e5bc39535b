"""Documents -> tokenizer and shards: what a run needs before its first step, made once and kept."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ziggurat.context import GOLDEN
from ziggurat.data import sources
from ziggurat.data.leaks import Leak, LeakIndex
from ziggurat.data.reading import Reading
from ziggurat.data.shards import Shards
from ziggurat.data.sources import Source
from ziggurat.data.writing import write_shards
from ziggurat.errors import UserError
from ziggurat.systems import SYSTEMS
from ziggurat.text.tokenizer import Tokenizer
from ziggurat.text.train import train_tokenizer
from ziggurat.train.loop import Stopped
from ziggurat.train.recipe import Recipe
from ziggurat.types import Document

log = logging.getLogger(__name__)

Splits = dict[tuple[str, str], Shards]


@dataclass(frozen=True)
class Prepared:
    """A run's tokenizer and its shards by (source, split)."""

    tokenizer: Tokenizer
    shards: Splits
    facts: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    """What was read, left out as unreadable, and left out as a near duplicate of a test document."""


def prepare(
    recipe: Recipe, folder: Path, tokenizer: Tokenizer | None = None, stop: Callable[[], bool] = lambda: False
) -> Prepared:
    """Tokenizer and shards of all sources that the stages name, in `folder`; what is there and still true is kept.

    `tokenizer` comes with the weights to start from and is used unless the recipe brings its own. Every training text,
    the task's own rows too, is freed of documents that hold a test document or a near duplicate of one.
    """
    used = list(dict.fromkeys(name for stage in recipe.stages for name in stage.data))
    tests = [name for name in used if "test" in sources.splits(recipe.sources[name])]
    mark = _mark(recipe, tests)

    @cache
    def index() -> LeakIndex | None:
        return LeakIndex(d for n in tests for d in sources.documents(recipe.sources[n], "test")) if tests else None

    def texts() -> Iterator[str]:
        for name in used:
            for document in _clean(recipe.sources[name], "train", index(), Reading(), []):
                _heed(stop)
                yield from document.texts.values()

    key = _key(recipe, used, mark)
    tokenizer = _tokenizer(recipe, folder / "tokenizer", tokenizer, texts, key)
    shards: Splits = {}
    facts: dict[tuple[str, str], dict[str, Any]] = {}
    fresh: list[tuple[str, str]] = []
    for name in used:
        for split in sources.splits(recipe.sources[name]):
            one, fact, new = _shards(recipe.sources[name], name, split, folder, tokenizer, index, mark, stop)
            shards[name, split], facts[name, split] = one, fact
            fresh += [(name, split)] if new else []
    for name, split in shards:
        if split == "test":
            for other in [o for o, of in shards if of == "train" and {(name, "test"), (o, "train")} & set(fresh)]:
                assert_apart(shards[name, split], shards[other, "train"])
    return Prepared(tokenizer, shards, facts)


def _mark(recipe: Recipe, tests: list[str]) -> str:
    """What identifies the test rows that training texts were freed of."""
    state = [sources.fingerprint(recipe.sources[name], "test") for name in tests]
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()[:16] if tests else ""


def _clean(source: Source, split: str, index: LeakIndex | None, reading: Reading, left_out: list[Leak]) -> Iterator[Document]:
    documents = sources.documents(source, split, reading)  # type: ignore[arg-type]
    return documents if index is None or split == "test" else index.clean(documents, left_out)


def _tokenizer(
    recipe: Recipe, folder: Path, brought: Tokenizer | None, texts: Callable[[], Iterator[str]], key: str
) -> Tokenizer:
    spec = recipe.tokenizer
    if spec is None:
        if brought is None:
            raise UserError("there is no tokenizer: the checkpoint to start from has none", "give the recipe a `tokenizer`")
        return brought
    if spec.path is not None:
        return Tokenizer.load(spec.path, segmenter=spec.segmenter if "segmenter" in spec.model_fields_set else None)
    made = folder / "made.json"
    identity = json.dumps([spec.model_dump(mode="json"), key], sort_keys=True)
    if made.exists() and made.read_text("utf-8") == identity:
        return Tokenizer.load(folder, segmenter=spec.segmenter)
    template: Any = SYSTEMS[recipe.system.partition("/")[0]].template
    log.info("training a %s tokenizer of %s tokens", spec.kind, f"{spec.vocab:,}")
    tokenizer = train_tokenizer(spec, texts(), template=template)
    tokenizer.save(folder)
    made.write_text(identity, "utf-8")
    return tokenizer


def _shards(
    source: Source,
    name: str,
    split: str,
    folder: Path,
    tokenizer: Tokenizer,
    index: Callable[[], LeakIndex | None],
    mark: str,
    stop: Callable[[], bool],
) -> tuple[Shards, dict[str, Any], bool]:
    place = folder / "shards" / name / split
    facts_file = place.with_name(f"{split}.json")
    identity = f"{sources.fingerprint(source, split)[:16]}/{'' if split == 'test' else mark}"  # type: ignore[arg-type]
    if (place / "meta.json").exists() and facts_file.exists():
        shards = Shards.open(place)
        if shards.meta.get("source") == identity and shards.meta.get("tokenizer") == tokenizer.fingerprint:
            return shards, json.loads(facts_file.read_text("utf-8")), False
    reading, left_out = Reading(), list[Leak]()

    def documents() -> Iterator[Document]:
        for document in _clean(source, split, index(), reading, left_out):
            _heed(stop)
            yield document

    shards = write_shards(place, documents(), tokenizer, source=identity)
    read = {k: v for k, v in asdict(reading).items() if isinstance(v, int)}
    fact = {
        "source": name,
        "split": split,
        **read,
        "kept": len(shards),
        "tokens": shards.tokens,
        "leaks": len(left_out),
        "leak_examples": [asdict(leak) for leak in left_out[:5]],
    }
    facts_file.write_text(json.dumps(fact, ensure_ascii=False), "utf-8")
    log.info(
        "%s/%s: %s documents, %s tokens%s", name, split, f"{len(shards):,}", f"{shards.tokens:,}",
        f"; {len(left_out):,} left out because they hold test rows" if left_out else "",
    )  # fmt: skip
    return shards, fact, True


def assert_apart(test: Shards, train: Shards, *, gram: int = 8) -> int:
    """Check on the finished shards, by token ids and not by the rule that cleaned them, that no training document holds
    the whole of a test text. Returns the test texts looked for; texts of up to `gram` tokens are too short to tell."""
    begin: dict[int, list[int]] = {}
    ids, bounds = np.asarray(test.read(np.arange(len(test))).parts["text"].ids), np.append(0, np.cumsum(test.lengths()))
    looked = np.flatnonzero(np.diff(bounds) > gram)
    for d in looked.tolist():
        # the first token may differ where a text stands inside another (byte-level spaces)
        begin.setdefault(int(_rolled(ids[bounds[d] + 1 : bounds[d] + 1 + gram], gram)[0]), []).append(d)
    wanted = np.array(sorted(begin), np.uint64)
    for start in range(0, len(train), 1024):
        part = train.read(np.arange(start, min(start + 1024, len(train)))).parts["text"]
        hashes = _rolled(part.ids, gram)
        for at in np.flatnonzero(np.isin(hashes, wanted)).tolist():
            for d in begin[int(hashes[at])]:
                text = ids[bounds[d] + 1 : bounds[d + 1]]
                assert not np.array_equal(part.ids[at : at + len(text)], text), f"test text {d} stands in the training text"
    return len(looked)


def _rolled(ids: np.ndarray, n: int) -> np.ndarray:
    """uint64[N - n + 1]: one hash for every run of n ids."""
    total = np.zeros(max(0, len(ids) - n + 1), np.uint64)
    with np.errstate(over="ignore"):
        for j in range(n):
            total = total * GOLDEN + ids[j : j + len(total)].astype(np.uint64)
    return total


def _key(recipe: Recipe, used: list[str], mark: str) -> str:
    state = [[name, sources.fingerprint(recipe.sources[name], "train")] for name in used]
    return hashlib.sha256(json.dumps([state, mark]).encode()).hexdigest()[:16]


def _heed(stop: Callable[[], bool]) -> None:
    if stop():
        raise Stopped
