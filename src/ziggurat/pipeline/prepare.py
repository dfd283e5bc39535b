"""Documents -> tokenizer and shards: what a run needs before its first step, made once and kept."""

from __future__ import annotations

import hashlib
import json
import logging
import zlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ziggurat.atomic import write_json, write_text
from ziggurat.config import spelled
from ziggurat.context import GOLDEN
from ziggurat.data import sources
from ziggurat.data.census import Census
from ziggurat.data.files import expanded
from ziggurat.data.found import Collocations
from ziggurat.data.leaks import Leak, LeakIndex
from ziggurat.data.leaks import words as words_of
from ziggurat.data.nearest import nearest
from ziggurat.data.reading import Reading
from ziggurat.data.shards import Shards
from ziggurat.data.sources import Source
from ziggurat.data.subset import Subset
from ziggurat.data.writing import write_shards
from ziggurat.errors import UserError, check
from ziggurat.log import counted
from ziggurat.systems import find
from ziggurat.text.collocations import collocations
from ziggurat.text.phrases import finder_of, identity_of, marked
from ziggurat.text.tokenizer import Tokenizer
from ziggurat.text.train import train_tokenizer
from ziggurat.text.vectors import Vectors, installed, similar_words
from ziggurat.text.vocabulary import Added
from ziggurat.train.adaptation import SAMPLE
from ziggurat.train.arms import left_open
from ziggurat.train.recipe import Recipe
from ziggurat.train.stage import Stage
from ziggurat.types import Document, Part

log = logging.getLogger(__name__)

Splits = dict[tuple[str, str], Shards]

BLOCK = 1 << 19
"""Tokens looked at together."""


@dataclass(frozen=True)
class Prepared:
    """A run's tokenizer and its shards by (source, split)."""

    tokenizer: Tokenizer
    shards: Splits
    facts: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    """What was read, left out as unreadable, and left out as a near duplicate of a test document; and how well the tokenizer fits."""
    near: dict[tuple[str, str], Subset] = field(default_factory=dict)
    """By (stage, source): the documents of the source that are nearest to the stage's texts."""
    added: tuple[Added, ...] = ()
    """New tokens of the stage that extended the vocabulary, if one did."""
    bought: dict[str, int] = field(default_factory=dict)
    """What they bought on the sample they were mined from."""

    def read(self, stage: Stage) -> dict[str, Any]:
        """The texts that a stage trains on, by source."""
        return {name: self.near.get((stage.title, name)) or self.shards[name, "train"] for name in stage.reads}


def prepare(recipe: Recipe, folder: Path, tokenizer: Tokenizer | None = None, *, cleaned: bool = False) -> Prepared:
    """Tokenizer, shards of all sources that the stages name, and tables of similar words that objectives want from them, in `folder`;
    what is there and still true is kept.

    `tokenizer` comes with the weights to start from and is used unless the recipe brings its own. Every training text,
    the task's own rows too, is freed of documents that hold a test document or a near duplicate of one, unless it was `cleaned` before.
    """
    tests = TestTexts(recipe, cleaned)
    wanted = dict.fromkeys(v for stage in recipe.stages if stage.objective for v in stage.objective.vectors)
    if wanted:
        installed()  # said now, not after the corpus was tokenized

    def texts() -> Iterator[str]:
        for name in used(recipe):
            for document in tests.clean(recipe.sources[name], "train", Reading(), []):
                yield from (*document.texts.values(), *(text for texts in document.lists.values() for text in texts))

    found = cut(recipe, folder, _tokenizer(recipe, folder, tokenizer, texts, tests.mark), used(recipe), tests)
    for vectors in wanted:
        _similar(vectors, folder, found)
    return found


def cut(recipe: Recipe, folder: Path, tokenizer: Tokenizer, train: Collection[str], tests: TestTexts | None = None) -> Prepared:
    """Shards in `folder`, as `tokenizer` cuts the texts: the training text of the sources in `train`, and of all sources what nothing is
    trained on."""
    tests, found = tests or TestTexts(recipe), Prepared(tokenizer, {}, {})
    fresh: list[tuple[str, str]] = []
    for name, split in parts(recipe):
        if split != "train" or name in train:
            fresh += [(name, split)] if _shards(recipe, name, split, folder, tests, found) else []
    for (name, kind), test in found.shards.items():
        if kind == "test":
            for other in [o for o, of in found.shards if of == "train" and {(name, "test"), (o, "train")} & set(fresh)]:
                assert_apart(test, found.shards[other, "train"], tokenizer)
    for stage in recipe.stages:
        for name in stage.nearest if {*stage.data, *stage.nearest} <= set(train) else ():
            found.near[stage.title, name] = _near(stage, name, folder, found)
    return found


def prepare_held_out(recipe: Recipe, folder: Path, tokenizer: Tokenizer) -> Prepared:
    """Only the texts that nothing is trained on, for another tokenizer than the recipe's perhaps."""
    return cut(recipe, folder, tokenizer, ())


def used(recipe: Recipe) -> list[str]:
    """The sources that stages train on, or weigh their weights on."""
    control = [recipe.worth.control] if recipe.worth is not None and recipe.worth.control is not None else []
    return list(dict.fromkeys([n for stage in recipe.stages for n in (*stage.reads, *stage.weighed)] + control))


def parts(recipe: Recipe) -> list[tuple[str, Any]]:
    """(source, split) of all shards of a recipe: of the sources that are only measured on, what is held out."""
    trained = used(recipe)
    possible = [SAMPLE] if SAMPLE in recipe.sources and any(left_open(s) for s in recipe.stages) else []
    names = [*(n for stage in recipe.stages for n in stage.measures), *possible]
    measured = dict.fromkeys(n for n in names if n not in trained)
    found = [(name, split) for name in trained for split in sources.splits(recipe.sources[name])]
    return found + [(n, split) for n in measured for split in sources.splits(recipe.sources[n]) if split != "train"]


def content(shards: Shards | Subset) -> str:
    """What identifies the tokens, labels and order of documents in shards, wherever they came from."""
    state = [shards.meta["files"], shards.meta["mark_labels"]]
    state += [shards.meta["chosen"]] if "chosen" in shards.meta else []
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()[:16]


class TestTexts:
    """The documents of a recipe that no other text may hold: all test splits, and whatever is held out of sources that are only
    measured on (`forgetting`)."""

    def __init__(self, recipe: Recipe, cleaned: bool = False):
        trained = used(recipe)
        wanted = [(name, split) for name, split in parts(recipe) if split == "test" or name not in trained]
        self.kept: list[tuple[Source, Any]] = [] if cleaned else [(recipe.sources[name], split) for name, split in wanted]
        """(source, split) of each, which are read as they are."""
        state = [sources.fingerprint(source, split) for source, split in self.kept]
        self.mark = hashlib.sha256(json.dumps(state).encode()).hexdigest()[:16] if state else ""
        """Identifies them."""
        self._index: LeakIndex | None = None

    def holds(self, source: Source, split: str) -> bool:
        """Whether a split is among them."""
        return split == "test" or (source, split) in self.kept

    def clean(self, source: Source, split: str, reading: Reading, left_out: list[Leak]) -> Iterator[Document]:
        """The documents of a split; those that hold a test document go to `left_out`."""
        documents = sources.documents(source, split, reading)  # type: ignore[arg-type]
        if self.holds(source, split) or not self.kept:
            return documents
        if self._index is None:
            self._index = LeakIndex(self._documents())
        return self._index.clean(documents, left_out)

    def _documents(self) -> Iterator[Document]:
        for source, split in self.kept:
            try:
                yield from sources.documents(source, split)
            except sources.EmptySplit:  # said where its shards are written, if somebody asked for them
                if split == "test":
                    raise


def _tokenizer(recipe: Recipe, run: Path, brought: Tokenizer | None, texts: Callable[[], Iterator[str]], mark: str) -> Tokenizer:
    spec, folder = recipe.tokenizer, run / "tokenizer"
    made = folder / "made.json"
    if spec is None or spec.path is not None:
        if spec is not None and spec.path is not None:
            brought = Tokenizer.load(
                expanded(spec.path), segmenter=spec.segmenter if "segmenter" in spec.model_fields_set else None
            )
        if brought is None:
            raise UserError("there is no tokenizer: the checkpoint to start from has none", "give the recipe a `tokenizer`")
        made.unlink(missing_ok=True)
        brought.save(folder)
        return brought
    state = [[name, sources.fingerprint(recipe.sources[name], "train")] for name in used(recipe)]
    text = hashlib.sha256(json.dumps([state, mark]).encode()).hexdigest()[:16]
    own = list(dict.fromkeys(name for stage in recipe.stages if stage.objective for name in stage.objective.tokens()))
    identity = {"spec": spec.model_dump(mode="json"), "system": recipe.system.partition("/")[0], "text": text}
    identity |= {"tokens": own} if own else {}
    before = json.loads(made.read_text("utf-8")) if made.exists() else {}
    if before == identity:
        return Tokenizer.load(folder, segmenter=spec.segmenter)
    if isinstance(before, dict) and {**before, "text": text} == identity and any(run.glob("*/step-*")):
        log.info("the tokenizer stays as it is: stages were trained with it before the recipe's sources changed")
        return Tokenizer.load(folder, segmenter=spec.segmenter)
    page = find(recipe.system.partition("/")[0])
    assert page is not None  # the recipe was checked
    template: Any = page.template
    log.info("training a %s tokenizer of %s tokens", spec.kind, f"{spec.vocab:,}")
    tokenizer = train_tokenizer(spec, counted("reading text for the tokenizer", texts()), template=template)
    if own:  # what the objectives ask with is there before a model is built on the vocabulary
        tokenizer = tokenizer.add_tokens(own)
    made.unlink(missing_ok=True)
    tokenizer.save(folder)
    write_json(made, identity)
    return tokenizer


def _shards(recipe: Recipe, name: str, split: str, folder: Path, tests: TestTexts, found: Prepared) -> bool:
    """Put the shards of a split and the facts about them into `found`; whether they had to be made."""
    source, tokenizer = recipe.sources[name], found.tokenizer
    place = folder / "shards" / name / split
    facts = place.with_name(f"{split}.json")
    identity = f"{sources.fingerprint(source, split)[:16]}/{'' if tests.holds(source, split) else tests.mark}"  # type: ignore[arg-type]
    phrases = _phrases(name, source, folder, tests)
    identity += f"/{hashlib.sha256(identity_of(phrases).encode()).hexdigest()[:16]}" if phrases else ""
    if (place / "meta.json").exists() and facts.exists():
        shards = Shards.open(place)
        if shards.meta.get("source") == identity and shards.meta.get("tokenizer") == tokenizer.fingerprint:
            shards.verify()  # what was written once is read for every stage: a flipped bit must not be trained on
            found.shards[name, split], found.facts[name, split] = shards, json.loads(facts.read_text("utf-8"))
            _say(name, split, shards, found.facts[name, split].get("leaks", 0))
            return False
    reading, left_out = Reading(), list[Leak]()
    documents = tests.clean(source, split, reading, left_out)
    if phrases:
        documents = marked(documents, finder_of(phrases))
    census = Census()
    documents = counted(f"tokenizing {name}/{split}", census.watch(documents))
    facts.unlink(missing_ok=True)  # they are about the old shards
    wanted = split != "valid" or "valid" in source.model_fields_set
    few = "%s: too few documents to hold some out; no loss is measured on it"
    try:
        shards = write_shards(place, documents, tokenizer, source=identity)
    except sources.EmptySplit:
        if wanted:
            raise
        log.warning(few, name)
        return False
    if not len(shards) and not wanted:  # all of them hold test rows
        log.warning(few, name)
        return False
    found.shards[name, split] = shards
    found.facts[name, split] = {
        "source": name,
        "split": split,
        **{k: v for k, v in asdict(reading).items() if isinstance(v, int)},
        "reasons": dict(reading.reasons),
        "unread": reading.examples,
        "kept": len(shards),
        "tokens": shards.tokens,
        **shards.fertility,
        "leaks": len(left_out),
        "leak_examples": [asdict(leak) for leak in left_out[:5]],
        **census.facts(),
    }
    write_json(facts, found.facts[name, split])
    _say(name, split, shards, len(left_out))
    return True


def _say(name: str, split: str, shards: Shards, leaks: int) -> None:
    """One line about a split: how much there is, and how well the tokenizer fits it."""
    fit = shards.fertility
    said = f"; {fit['tokens_per_word']:.2f} tokens a word, {100 * fit['unknown_share']:.2g}% unknown" if fit else ""
    said += f"; {leaks:,} left out because they hold test rows or other sources' held-out text" if leaks else ""
    log.info("%s/%s: %s documents, %s tokens%s", name, split, f"{len(shards):,}", f"{shards.tokens:,}", said)


def _near(stage: Stage, name: str, run: Path, found: Prepared) -> Subset:
    """The documents of a source that are nearest to a stage's texts, looked up unless they are known."""
    texts, corpus = [found.shards[one, "train"] for one in stage.data], found.shards[name, "train"]
    state = [[content(one) for one in (*texts, corpus)], stage.nearest[name], found.tokenizer.fingerprint]
    key = hashlib.sha256(json.dumps(state).encode()).hexdigest()[:16]
    path = run / "shards" / name / f"nearest-{key}.json"
    if not path.exists():
        log.info("%s: looking for the documents of %s nearest to %s", stage.title, name, ", ".join(stage.data))
        write_json(path, nearest(texts, corpus, stage.nearest[name], found.tokenizer.vocab.size).tolist())
    chosen = np.array(json.loads(path.read_text("utf-8")), np.int64)
    check(
        len(chosen),
        f"{stage.title}: no document of {name} has a word in common with {', '.join(stage.data)}",
        "leave `nearest` out",
    )
    subset = Subset(corpus, chosen, key)
    log.info(
        "%s: %s of %s documents of %s are near, %s tokens",
        stage.title,
        f"{len(chosen):,}",
        f"{len(corpus):,}",
        name,
        f"{subset.tokens:,}",
    )
    return subset


def _phrases(name: str, source: Source, run: Path, tests: TestTexts) -> str:
    """What finds the source's phrases, by name: a function, or a dictionary, which is made here if the recipe wants it; "" = nothing."""
    wanted = getattr(source, "phrases", None)
    if not isinstance(wanted, Collocations):
        return str(expanded(wanted)) if wanted else ""
    place = run / "phrases" / f"{name}.txt"
    made, identity = place.with_suffix(".json"), {"source": sources.fingerprint(source), "tests": tests.mark}
    if place.exists() and made.exists() and json.loads(made.read_text("utf-8")) == identity:
        return str(place)
    log.info("looking for words of %s that stand together", name)
    total = sum(len(text) for document in sources.documents(source) for text in document.texts.values())
    share = wanted.sample / max(1, total)

    def texts() -> Iterator[str]:
        for document in counted(f"counting words of {name}", tests.clean(source, "train", Reading(), [])):
            for text in document.texts.values():
                if zlib.crc32(text.encode()) < share * 2**32:
                    yield text

    settings = {key: value for key, value in wanted if key != "sample"}
    phrases = collocations(texts(), **settings)
    made.unlink(missing_ok=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    write_text(place, "".join(f"{phrase}\n" for phrase in phrases))
    write_json(made, identity)
    log.info("%s phrases of %s in %s", f"{len(phrases):,}", name, place)
    return str(place)


def _similar(spec: Vectors, run: Path, found: Prepared) -> None:
    """Make a table of similar words from all training text, unless it is there."""
    place = spec.place(run)
    made = place.with_suffix(".json")
    text = [[name, content(shards)] for (name, split), shards in found.shards.items() if split == "train"]
    identity = {"spec": spelled(spec), "tokenizer": found.tokenizer.fingerprint, "text": text}
    before = json.loads(made.read_text("utf-8")) if made.exists() and place.exists() else {}
    if before == identity:
        return
    if before and {**before, "text": text} == identity and any(run.glob("*/step-*")):
        log.info("similar words stay as they are: stages were trained with them before the recipe's sources changed")
        return
    log.info("looking for similar words by vectors of %d numbers, trained on the corpus", spec.width)
    train = [shards for (_, split), shards in found.shards.items() if split == "train"]
    share = spec.tokens / max(1, sum(shards.tokens for shards in train))

    def blocks() -> Iterator[Part]:
        for shards in train:
            chosen = np.flatnonzero(shards.keys <= min(share, 1) * 2.0**64)
            lengths = sum(shards.lengths(part, chosen) for part in shards.parts)
            for some in np.split(chosen, np.flatnonzero(np.diff(np.cumsum(lengths) // BLOCK)) + 1):
                yield from shards.read(some).parts.values()

    words = similar_words(blocks, found.tokenizer.decode, spec)
    made.unlink(missing_ok=True)
    place.parent.mkdir(exist_ok=True)
    write_text(place, "".join("\t".join([word, *similar]) + "\n" for word, similar in words.items()))
    write_json(made, identity)
    log.info("%s words with their similar words in %s", f"{len(words):,}", place)


def assert_apart(test: Shards, train: Shards, tokenizer: Tokenizer, *, gram: int = 8) -> int:
    """Check on the finished shards, by token ids and not by the rule that cleaned them, that no training document holds
    the whole of a test text. Returns the test texts looked for; texts of up to `gram` words or tokens are too short to tell, and one
    with an unknown token does not say what it was. Of questions their contexts are looked for (`leaks.telling`)."""
    begin: dict[int, list[int]] = {}
    unk = tokenizer.vocab.unk
    telling = "pair" if "answers" in test.meta["fields"] else "text"
    part = test.read(np.arange(len(test))).parts[telling]
    ids, bounds = np.asarray(part.ids), np.append(0, np.cumsum(test.lengths(telling)))
    words, unknown = (np.append(0, np.cumsum(flags))[bounds] for flags in (part.words, ids == (-1 if unk is None else unk)))
    looked = np.flatnonzero((np.diff(bounds) > gram) & (np.diff(words) > gram) & (np.diff(unknown) == 0))
    for d in looked.tolist():
        # the first token may differ where a text stands inside another (byte-level spaces)
        begin.setdefault(int(_rolled(ids[bounds[d] + 1 : bounds[d] + 1 + gram], gram)[0]), []).append(d)
    wanted = np.array(sorted(begin), np.uint64)
    for start in range(0, len(train), 1024):
        read = train.read(np.arange(start, min(start + 1024, len(train)))).parts
        for part in [read[name] for name in dict.fromkeys(("text", telling)) if name in read]:
            hashes = _rolled(part.ids, gram)
            for at in np.flatnonzero(np.isin(hashes, wanted)).tolist():
                for d in begin[int(hashes[at])]:
                    text = ids[bounds[d] + 1 : bounds[d + 1]]
                    stands = np.array_equal(part.ids[at : at + len(text)], text)
                    # a tokenizer takes punctuation for words, by which no test text is told
                    assert not stands or len(words_of(tokenizer.decode(text))) <= gram, (
                        f"test text {d} stands in the training text"
                    )
    return len(looked)


def _rolled(ids: np.ndarray, n: int) -> np.ndarray:
    """uint64[N - n + 1]: one hash for every run of n ids."""
    total = np.zeros(max(0, len(ids) - n + 1), np.uint64)
    with np.errstate(over="ignore"):
        for j in range(n):
            total = total * GOLDEN + ids[j : j + len(total)].astype(np.uint64)
    return total
