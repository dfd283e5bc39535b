"""Extended tokenizers: old ids stay, old texts are cut as before, new tokens save what was promised, and the library reads them."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import transformers
from tokenizers import models, normalizers, pre_tokenizers

from ziggurat.errors import UserError
from ziggurat.text import mining
from ziggurat.text.tokenizer import Tokenizer
from ziggurat.text.train import TokenizerSpec, train_tokenizer
from ziggurat.text.vocabulary import VocabularySpec, _isolate, _pattern, extend

Get = Callable[[str, str], Tokenizer]
KINDS = [("wordpiece", "bert"), ("bpe", "roberta"), ("bpe", "gpt2"), ("unigram", "t5"), ("unigram", "xlnet")]
DOMAIN = ["bronchitis and pneumonia", "chronic bronchitis", "acute pneumonia, bronchitis", "the angiotensin receptor"] * 4
ZH = ["慢性支气管炎患者的研究", "支气管炎与肺炎的治疗方法", "研究支气管炎患者", "肺炎患者接受治疗"] * 4


def spec(extend: int, **more: object) -> VocabularySpec:
    return VocabularySpec.model_validate({"extend": extend, "min_frequency": 2, **more})


@pytest.mark.parametrize(("kind", "template"), KINDS)
@pytest.mark.parametrize("texts", [DOMAIN, ZH], ids=["en", "zh"])
def test_laws(kind: str, template: str, texts: list[str], trained: Get, lines: list[str], tmp_path: Path) -> None:
    old = trained(kind, template)
    found = extend(old, texts, spec(3, segmenter="jieba"))
    new = found.tokenizer
    before, after = old.library.get_vocab(), new.library.get_vocab()
    # ids of old tokens, the special ones too, stay; new ones follow
    assert all(after[token] == number for token, number in before.items())
    assert [a.id for a in found.added] == list(range(old.vocab.size, old.vocab.size + 3)) and new.vocab.size == old.vocab.size + 3
    assert (old.vocab.special, old.layout, old.roles) == (new.vocab.special, new.layout, new.roles)
    assert len(new.library.get_added_tokens_decoder()) == len(old.library.get_added_tokens_decoder())  # none of the slow kind
    # a text of which nothing became a new token is cut as before, and every new token stands for its pieces
    news = {a.id for a in found.added}
    for text, one, two in zip(lines, old.encode(lines), new.encode(lines), strict=True):
        if not news & set(two.ids.tolist()):
            assert one.ids.tolist() == two.ids.tolist() and one.offsets.tolist() == two.offsets.tolist(), text
    # the texts are shorter, by what was counted
    lengths = [sum(len(e) for e in t.encode(texts)) for t in (old, new)]
    assert lengths == [found.sample["tokens_before"], found.sample["tokens_after"]]
    # (Unigram makes one unknown token of all unknown characters in a row: there the texts are better known, not shorter)
    assert lengths[1] < lengths[0] or found.sample["unknown_after"] < found.sample["unknown_before"]
    used = Counter(np.concatenate([e.ids for e in new.encode(texts)]).tolist())
    assert [used[a.id] for a in found.added] == [a.count for a in found.added]
    if kind != "bpe":
        assert all(a.count for a in found.added)
    # read again, by us and by transformers
    new.save(tmp_path)
    again, theirs = Tokenizer.load(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert again.fingerprint == new.fingerprint != old.fingerprint
    for text, mine, other in zip([*texts, *lines], new.encode([*texts, *lines]), again.encode([*texts, *lines]), strict=True):
        assert mine.ids.tolist() == other.ids.tolist()
        assert theirs(text, add_special_tokens=False)["input_ids"] == mine.ids.tolist(), text


@pytest.mark.parametrize(("kind", "template"), KINDS)
def test_the_order_of_texts_and_a_second_time_change_nothing(kind: str, template: str, trained: Get, lines: list[str]) -> None:
    other = random.Random(1).sample(lines, len(lines))
    one, two = (extend(trained(kind, template), texts, spec(20, min_frequency=3)) for texts in (lines, other))
    assert one.added == two.added and one.tokenizer.fingerprint == two.tokenizer.fingerprint


def test_wordpiece_takes_what_saves_most(trained: Get) -> None:
    """The rule written out: times it stands there, times tokens saved; of equal ones the first by its letters."""
    old = trained("wordpiece", "bert")
    counts = Counter(word for text in DOMAIN for word in text.replace(",", " ,").split())
    sizes = {word: len(old.encode([word])[0]) for word in counts}
    saved = {word: counts[word] * (sizes[word] - 1) for word in counts if sizes[word] > 1}
    found = extend(old, DOMAIN, spec(len(saved))).added
    assert [a.token for a in found] == sorted(saved, key=lambda word: (-saved[word], word))
    assert [a.pieces for a in found] == [tuple(old.encode([a.token])[0].ids.tolist()) for a in found]


def test_bpe_goes_on_with_its_training(lines: list[str]) -> None:
    """Greedy merges written out slowly, on the pieces of the old merges."""
    old = train_tokenizer(TokenizerSpec(kind="bpe", vocab=400), iter(lines), template="gpt2")
    texts = DOMAIN + ZH
    words: Counter[tuple[str, ...]] = Counter()
    for text in texts:
        encoding = old.library.encode(text, add_special_tokens=False)
        for number in dict.fromkeys(encoding.word_ids):
            words[tuple(t for t, w in zip(encoding.tokens, encoding.word_ids, strict=True) if w == number)] += 1
    known, gains = set(old.library.get_vocab()), []
    for merge in extend(old, texts, spec(12)).added:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, count in words.items():
            for a, b in pairwise(word):
                pairs[a, b] += count
        best = max(count for (a, b), count in pairs.items() if a + b not in known)
        made = [(a, b) for a, b in pairs if a + b == merge.token and pairs[a, b] == best]
        assert made, f"{merge.token} is not the most frequent pair"
        known.add(merge.token)
        gains.append(best)
        joined: Counter[tuple[str, ...]] = Counter()
        for word, count in words.items():
            joined[_merge(word, made[0])] += count
        words = joined
    assert gains == sorted(gains, reverse=True)


def _merge(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    made: list[str] = []
    for piece in word:
        if made and (made[-1], piece) == pair:
            made[-1] += piece
        else:
            made.append(piece)
    return tuple(made)


def test_unigram_scores_are_shares_of_the_tokens(trained: Get) -> None:
    old = trained("unigram", "t5")
    found = extend(old, DOMAIN, spec(2))
    scores = dict(found.tokenizer.content()["model"]["vocab"])
    total = found.sample["tokens_before"]
    for a in found.added:
        assert scores[a.token] == pytest.approx(np.log(a.count / total), abs=1e-3)
    assert min(scores.values()) == min(score for _, score in old.content()["model"]["vocab"])  # what an unknown letter costs


def test_unknown_words_and_letters_become_known(trained: Get) -> None:
    old = trained("wordpiece", "bert")
    texts = ["龘龘 and 龘", "ʒʒʒa twice, ʒʒʒa"] * 2
    found = extend(old, texts, spec(2))
    assert {a.token for a in found.added} == {"龘", "ʒʒʒa"}
    assert (found.sample["unknown_before"], found.sample["unknown_after"]) == (10, 0)
    assert all(a.pieces == (old.vocab.unk,) for a in found.added)


def test_unknown_characters_in_a_row_are_cut_into_words(trained: Get) -> None:
    """Unigram, with jieba's words."""
    old = trained("unigram", "t5")
    texts = ["慢性支气管炎患者的研究"] * 3 + ["患者的龘"] * 2
    found = {c.token for c in mining.words(old, texts, "jieba", 2)}
    assert {"支气管炎", "患者", "龘"} <= found and not any("的" in word and len(word) > 1 for word in found)


def test_a_word_that_would_break_others_is_left_out() -> None:
    """With `foo` an entry, `fooq` would be foo + ##q, and ##q is nothing."""
    vocab = {t: n for n, t in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "f", "##o", "##oq", "b", "##a", "##r"])}
    raw = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    old = Tokenizer(raw)
    texts = ["foo foo foo foo fooq fooq bar bar"]
    assert [a.token for a in extend(old, texts, spec(1)).added] == ["bar"]
    new = extend(old, texts, spec(2)).tokenizer  # together with fooq it may stay
    assert new.vocab.unk not in new.encode(texts)[0].ids


def test_chinese_words_keep_the_rest_as_it_was(trained: Get, lines: list[str]) -> None:
    """Setting Han characters apart by the pre-tokenizer instead of the normaliser changes nothing by itself."""
    old = trained("wordpiece", "bert")
    content = old.content()
    _isolate(content, {"龘龘龘龘"})
    new = old.with_content(content)
    odd = ["山\u0301水a火", "\uf900\uf901 豈更", "Ａ山　水", "山\u200b水", "か山カ水ー", "𠀀𠀁", "山。水", "é山É", "x山\ty"]
    for text, one, two in zip([*lines, *odd], old.encode([*lines, *odd]), new.encode([*lines, *odd]), strict=True):
        assert one.ids.tolist() == two.ids.tolist() and one.offsets.tolist() == two.offsets.tolist(), text


@pytest.mark.parametrize(
    ("normalizer", "cutter"),
    [
        (normalizers.BertNormalizer(handle_chinese_chars=False), pre_tokenizers.BertPreTokenizer()),
        (normalizers.BertNormalizer(), pre_tokenizers.Whitespace()),
        (normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()]), pre_tokenizers.BertPreTokenizer()),
        (None, pre_tokenizers.Whitespace()),
    ],
    ids=["not set apart", "another cutter", "NFKC", "no normaliser"],
)
def test_chinese_that_is_cut_like_letters_stays_so(
    normalizer: normalizers.Normalizer | None, cutter: pre_tokenizers.PreTokenizer
) -> None:
    """Of a WordPiece tokenizer without BERT's rule for Han characters: a text without new tokens keeps its ids, and a longer Chinese word
    that was an entry stays the piece it was."""
    letters = "高血压糖尿病肺炎患者abc"
    entries = [t for letter in letters for t in (letter, "##" + letter)]
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *entries, "患者", "##患者"]
    raw = tokenizers.Tokenizer(models.WordPiece({t: n for n, t in enumerate(names)}, unk_token="[UNK]"))
    raw.pre_tokenizer = cutter
    if normalizer is not None:
        raw.normalizer = normalizer
    old, draw = Tokenizer(raw), random.Random(0)
    texts = [f"{'高血压' if n % 2 else '糖尿病'} 龘 abc" for n in range(12)]
    found = extend(old, texts, spec(2, segmenter="jieba"))
    news, same = {a.id for a in found.added}, 0
    odd = ["".join(draw.choices(letters, k=7)) + "患者" for _ in range(60)] + ["患者", "肺炎患者", "炎a患者。b"]
    for text, one, two in zip(odd, old.encode(odd), found.tokenizer.encode(odd), strict=True):
        if not news & set(two.ids.tolist()):
            assert one.ids.tolist() == two.ids.tolist() and one.offsets.tolist() == two.offsets.tolist(), text
            same += 1
    assert same > 40
    again = extend(found.tokenizer, ["肺炎患者 肺炎 cab 龘cab"] * 3, spec(1))
    assert again.tokenizer.vocab.size == old.vocab.size + 3
    for part in ("normalizer", "pre_tokenizer"):
        assert found.tokenizer.content()[part] == again.tokenizer.content()[part] == old.content()[part]


def test_without_words_chinese_needs_a_segmenter(trained: Get) -> None:
    with pytest.raises(UserError, match="candidates") as found:
        extend(trained("wordpiece", "bert"), ["的是在有和人这中大为上个国不以会就出要年生自分成"] * 3, spec(5))
    assert "segmenter: jieba" in found.value.hint


def test_the_pattern_takes_the_longest_of_many_words() -> None:
    import re

    draw = random.Random(0)
    letters = [chr(0x4E00 + n) for n in range(60)]
    words = sorted({"".join(draw.choices(letters, k=draw.randint(2, 4))) for _ in range(800)})
    pattern = re.compile(_pattern(words))
    for _ in range(3000):
        text = "".join(draw.choices(letters, k=4))
        longest = max((w for w in words if text.startswith(w)), key=len, default=None)
        match = pattern.match(text)
        assert (match.group() if match else None) == longest


def test_too_few_candidates_no_text_and_kinds_that_cannot(trained: Get) -> None:
    for kind, template in KINDS:
        with pytest.raises(UserError, match="extend 50,000, but my text has"):
            extend(trained(kind, template), DOMAIN, spec(50_000), what="my text")
    with pytest.raises(UserError, match="there is no text"):
        extend(trained("bpe", "gpt2"), [" \n"], spec(1))
    raw = tokenizers.Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "a": 2}, unk_token="[UNK]"))
    with pytest.raises(UserError, match="wordlevel tokenizer cannot be extended"):
        extend(Tokenizer(raw), DOMAIN, spec(1))


def test_special_tokens_behind_the_vocabulary_keep_their_ids(trained: Get) -> None:
    """The library numbers those anew when it reads a file whose vocabulary has grown."""
    for kind, template in KINDS:
        old = trained(kind, template).add_tokens(["[ATTN]", "<extra>"])
        new = extend(old, DOMAIN, spec(2)).tokenizer
        assert new.vocab.names == old.vocab.names
        assert Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(new.content())), new.roles).vocab.names == old.vocab.names
        assert new.encode(["a [ATTN] b<extra>"])[0].ids.tolist() == old.encode(["a [ATTN] b<extra>"])[0].ids.tolist()


def test_keys_and_numbers_are_no_words(trained: Get) -> None:
    texts = ["x" + "0f9a" * 8 + " 123456789 bronchitis"] * 3
    found = mining.words(trained("wordpiece", "bert"), texts, "characters", 2)
    assert [c.token for c in found] == ["bronchitis"]
