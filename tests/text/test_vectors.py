"""Similar words out of the corpus: words of one kind find each other, in both languages; and in a run, once and for all of it."""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers

from ziggurat.data.runs import bounds_of
from ziggurat.errors import UserError
from ziggurat.pipeline import prepare as pipeline
from ziggurat.pipeline.run import prepare, run
from ziggurat.pipeline.show import batch_of
from ziggurat.text.similar import compiled, read_words
from ziggurat.text.tokenizer import Tokenizer
from ziggurat.text.vectors import Vectors, similar_words
from ziggurat.types import Part

ANIMALS, COLOURS = ["cat", "dog", "cow", "pig"], ["red", "blue", "pink", "grey"]
CITIES, DISHES = ["北京", "上海", "广州", "天津"], ["米饭", "面条", "包子", "饺子"]


def wordpiece(*words: str) -> Tokenizer:
    vocab = {w: i for i, w in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words))}
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocab, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    made.decoder = tokenizers.decoders.WordPiece()
    return Tokenizer(made)


def sentences(count: int = 150) -> list[str]:
    """Animals stand in one kind of sentence and colours in another."""
    rng = np.random.default_rng(0)
    texts = [f"the {a} eats grass and {b} sleeps ." for a, b in rng.choice(ANIMALS, (count, 2))]
    return texts + [f"paint walls {a} or rather {b} today !" for a, b in rng.choice(COLOURS, (count, 2))]


def blocks_of(texts: list[str], tokenizer: Tokenizer, size: int = 64) -> Callable[[], Iterator[Part]]:
    encoded = tokenizer.encode(texts)

    def blocks() -> Iterator[Part]:
        for i in range(0, len(texts), size):
            some = encoded[i : i + size]
            ids, words = (np.concatenate([getattr(e, name) for e in some]) for name in ("ids", "words"))
            lengths = np.array([len(e) for e in some])
            none, bounds = np.zeros((0, 3), np.int64), np.zeros(len(some) + 1, np.int64)
            yield Part(ids, bounds_of(lengths), words, np.zeros(len(ids), bool), none, bounds)

    return blocks


def test_neighbours_come_from_the_texts() -> None:
    texts = sentences()
    words = sorted({word for text in texts for word in text.split()} - {"red"})
    known = wordpiece(*words, "r", "##ed")
    spec = Vectors(width=6, most=3)
    made = similar_words(blocks_of(texts, known), known.decode, spec)
    for word in ANIMALS:
        assert set(made[word]) == set(ANIMALS) - {word}
    for word in ("blue", "pink", "grey"):
        assert set(made[word][:2]) == {"blue", "pink", "grey"} - {word}
    assert "red" not in made and "." not in made, "the only word of two tokens has no neighbour of as many"
    assert made == similar_words(blocks_of(texts, known, 7), known.decode, spec), (
        "how the text is cut into blocks changes nothing"
    )
    assert len(compiled(made, known)) == len(made)
    few = similar_words(blocks_of(texts, known), known.decode, Vectors(width=3, vocabulary=6))
    assert len(few) <= 6
    with pytest.raises(UserError, match="words occur 5 times"):
        similar_words(blocks_of(["the cat"], known), known.decode, spec)


def counted(texts: list[str], window: int) -> dict[tuple[str, str], int]:
    """How often a word stands near another, slowly."""
    found: dict[tuple[str, str], int] = {}
    for text in texts:
        words = [w for w in text.split() if w.isalnum()]
        for i, one in enumerate(words):
            for j in range(max(0, i - window), min(len(words), i + window + 1)):
                if i != j:
                    found[one, words[j]] = found.get((one, words[j]), 0) + 1
    return found


@pytest.mark.parametrize("window", [1, 2, 5])
def test_vectors_are_those_of_the_formula(window: int) -> None:
    """With all its dimensions the decomposition's scalar products are those of (P P^T)^(1/2) for the matrix P of the formula."""
    texts = sentences(40)
    names = sorted({w for text in texts for w in text.split() if w.isalnum()})
    known = wordpiece(*names, ".", "!")
    counts = counted(texts, window)
    total = {w: sum(n for (a, _), n in counts.items() if a == w) for w in names}
    smooth = sum(n**0.75 for n in total.values())
    p = np.zeros((len(names), len(names)))
    for (a, b), n in counts.items():
        p[names.index(a), names.index(b)] = max(0.0, np.log(n * smooth / (total[a] * total[b] ** 0.75)))
    left, values, _ = np.linalg.svd(p)
    keep = len(names) - 1
    vectors = left[:, :keep] * np.sqrt(values[:keep])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    likeness = vectors @ vectors.T
    made = similar_words(blocks_of(texts, known), known.decode, Vectors(window=window, width=keep, most=len(names), least=1))
    assert set(made) == set(names)
    for word, others in made.items():
        assert set(others) == set(names) - {word}
        row = [likeness[names.index(word), names.index(o)] for o in others]
        assert all(a >= b - 1e-9 for a, b in pairwise(row))


RECIPE = """\
name: {name}
system: macbert/tiny
model: {{layers: 1, width: 32, heads: 2, mlp: 64}}
tokenizer: {{kind: wordpiece, vocab: 300, segmenter: {segmenter}}}
sources: {{general: {{path: general.txt, txt: line, valid: 0.1}}}}
defaults: {{length: 32, batch: {{tokens: 256}}, precision: fp32, save: {{every: 2}}}}
stages:
  - {{stage: pretrain, data: general, steps: 4, objective: {{kind: joint, parts: [{{kind: mac, table: {{width: 40, most: 3}}}}, {{kind: sop}}]}}}}
"""


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A corpus of two languages in which words of four kinds stand in sentences of their own."""
    draw = random.Random(0)
    frames = {
        ("the {} eats green grass.", "every {} sleeps all night long.", "a farmer feeds his old {} here."): ANIMALS,
        ("she paints walls {} today.", "this dress looks rather {} again.", "bright {} light falls inside."): COLOURS,
        ("我们坐火车去{}旅行。", "他住在{}工作。", "昨天{}下大雨。"): CITIES,
        ("妈妈今天做{}给我吃。", "我最爱吃{}喝汤。", "一碗{}五块钱。"): DISHES,
    }
    said = [draw.choice(frame).format(draw.choice(kind)) for _ in range(500) for frame, kind in frames.items()]
    texts = [one + " " + other for one, other in zip(said[::2], said[1::2], strict=True)]
    (tmp_path / "general.txt").write_text("\n".join(texts) + "\n", "utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def recipe(name: str, segmenter: str = "characters") -> str:
    Path(f"{name}.yaml").write_text(RECIPE.format(name=name, segmenter=segmenter), "utf-8")
    return f"{name}.yaml"


def only(folder: Path) -> Path:
    (place,) = (folder / "similar").glob("*.tsv")
    return place


def test_a_run_makes_the_table_once(planted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = recipe("mac")
    folder = run(path)
    place = only(folder)
    words = read_words(place)
    for kind in (ANIMALS, COLOURS):
        for word in kind:
            assert set(words[word]) == set(kind) - {word}
    drawn = batch_of(path)
    assert "mac: " in drawn and "[MASK]" not in drawn
    (state,) = [(folder / "pretrain" / "stage.json").read_text("utf-8")]
    assert compiled(words, Tokenizer.load(folder / "tokenizer")).digest in state

    def never(*_: Any) -> Any:
        raise AssertionError("it was there")

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "similar_words", never)
        run(path)
        with open("general.txt", "a", encoding="utf-8") as file:
            file.write("one more line about the cat.\n")
        prepare(path)  # a stage was trained with it
    place.unlink()
    run_again = read_words(only(prepare("mac.yaml", ["name=other"])))
    assert set(run_again) == set(words)  # the line more has no frequent word


def test_words_of_chinese_text_are_those_of_the_segmenter(planted: Path) -> None:
    pytest.importorskip("jieba")
    words = read_words(only(prepare(recipe("zh", "jieba"))))
    for kind in (CITIES, DISHES, ANIMALS):
        for word in kind:
            assert set(words[word]) == set(kind) - {word}, word
    characters = read_words(only(prepare(recipe("zh1"))))
    assert "北" in characters and "北京" not in characters


def test_another_setting_is_another_table(planted: Path) -> None:
    path = recipe("two")
    one = only(prepare(path))
    prepare(path, ["stages.pretrain.objective.parts=[{kind: mac, table: {width: 40, most: 2}}, {kind: sop}]"])
    (other,) = {*one.parent.glob("*.tsv")} - {one}
    assert {len(v) for v in read_words(one).values()} >= {3} and max(map(len, read_words(other).values())) == 2


def test_a_missing_library_is_said_before_anything_is_read(planted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, real = recipe("none"), importlib.util.find_spec
    monkeypatch.setattr("ziggurat.text.vectors.find_spec", lambda name: None if name == "scipy" else real(name))
    with pytest.raises(UserError, match="scipy") as error:
        prepare(path)
    assert "ziggurat[similar]" in error.value.hint and not Path("runs/none/tokenizer").exists()
    Path("table.tsv").write_text("cat\tdog\n", "utf-8")
    prepare(path, ["stages.pretrain.objective={kind: mac, table: table.tsv}"])
