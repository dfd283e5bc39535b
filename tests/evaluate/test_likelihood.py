"""Likelihoods of choices: against a loop over single tokens, against `transformers`, and by hand where they are normalised."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hubs import END, PAD, VOCAB, bart, gpt2

from ziggurat.context import Context, Layout, Vocab
from ziggurat.errors import UserError
from ziggurat.evaluate.generate import Writer
from ziggurat.evaluate.likelihood import Likelihood, likelihoods, reads_whole, scores
from ziggurat.evaluate.prompt import Prompt
from ziggurat.nn import spec
from ziggurat.nn.network import NetworkModel
from ziggurat.objectives.seq2seq import Seq2Seq
from ziggurat.systems import model_of
from ziggurat.systems.hub import to_hub
from ziggurat.text.tokenizer import Encoded
from ziggurat.types import CAUSAL, FOREVER, Batch, Part, Stream, Target, Tokens, Visibility


class Letters:
    """A token a character, which takes the space before it along, as a byte-level tokenizer does; `~` is dropped."""

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        return [self.one(text) for text in texts]

    def one(self, text: str) -> Encoded:
        found = list(re.finditer(r"\s?[^\s~]", text))
        ids = np.array([5 + (7 * ord(m.group()[-1]) + 31 * (len(m.group()) - 1)) % (VOCAB - 5) for m in found], np.int32)
        offsets = np.array([(m.end() - 1, m.end()) for m in found], np.int64).reshape(-1, 2)
        return Encoded(ids, np.ones(len(ids), bool), np.ones(len(ids), bool), offsets)

    def ids(self, text: str) -> list[int]:
        return self.one(text).ids.tolist()


TOKENIZER: Any = Letters()
KNOWN = Vocab(VOCAB, PAD, 4, 3, END, (0, PAD, END, 3, 4), {})
GPT = Context(KNOWN, Layout((), (), (END,)), 64, "causal")
BART = Context(KNOWN, Layout((0,), (END, END), (END,)), 64, start=END, streams=("encoder", "decoder"), words="decoder")
PAIRS = [("ab c", "xyz"), ("q", "no"), ("a long prompt, quite", "m"), ("ab c", "yes it is"), ("", "alone")]


def of_tokens(logits: torch.Tensor, ids: Sequence[int]) -> float:
    """The log-probability of `ids`, the last ones said by the rows of logits [T, V]."""
    logs = logits.double().log_softmax(-1)[-len(ids) :]
    return float(logs.gather(1, torch.tensor(ids)[:, None]).sum())


def test_gpt2_says_what_transformers_says() -> None:
    hub, network = gpt2(4)
    found = likelihoods(network, {"kind": "clm"}, TOKENIZER, GPT, PAIRS)
    for (prompt, text), got in zip(PAIRS, found, strict=True):
        before = TOKENIZER.ids(prompt) or [END]
        after = TOKENIZER.ids(f" {text}" if prompt else text)
        total = 0.0
        for n, token in enumerate(after):  # one token at a time, the text before it and nothing else
            with torch.no_grad():
                row = hub(torch.tensor([before + after[:n]])).logits[0, -1]
            total += float(row.log_softmax(-1)[token])
        assert got.total == pytest.approx(total, rel=1e-9) and got.tokens == len(after)


def test_an_exported_gpt2_says_the_same(tmp_path: Path) -> None:
    import transformers

    _, network = gpt2(5)
    network = network.float()
    to_hub(network.spec, network.state_dict(), None, "gpt2", tmp_path)
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    for (prompt, text), got in zip(PAIRS, likelihoods(network, {"kind": "clm"}, TOKENIZER, GPT, PAIRS), strict=True):
        after = TOKENIZER.ids(f" {text}" if prompt else text)
        with torch.no_grad():
            logits = back(torch.tensor([(TOKENIZER.ids(prompt) or [END]) + after[:-1]])).logits[0]
        assert got.total == pytest.approx(of_tokens(logits, after), rel=1e-4)


def test_a_decoder_writes_what_its_encoder_was_asked() -> None:
    hub, network = bart(7)
    pairs = [(a, b) for a, b in PAIRS if a]
    for end in (False, True):
        found = likelihoods(network, {"kind": "denoise"}, TOKENIZER, BART, pairs, Likelihood(end=end))
        for (prompt, text), got in zip(pairs, found, strict=True):
            said = TOKENIZER.ids(text) + [END] * end
            with torch.no_grad():
                logits = hub(
                    input_ids=torch.tensor([[0, *TOKENIZER.ids(prompt), END]]),
                    decoder_input_ids=torch.tensor([[END, 0, *said[:-1]]]),
                ).logits[0]
            assert got.total == pytest.approx(of_tokens(logits, said), rel=1e-9) and got.tokens == len(said)


def tiny(system: str, extra: int = 0) -> NetworkModel:
    model = model_of(f"{system}/tiny", {"layers": 2, "width": 16, "heads": 2, "mlp": 24}, VOCAB)
    model = model.model_copy(update={"embed": model.embed.model_copy(update={"extra": extra})})
    network = NetworkModel(spec.Network(model=model, heads={"lm": spec.VocabHead()})).double()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in network.parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return network.eval()


def last_row(network: NetworkModel, ids: list[int], visibility: Visibility, segments: Sequence[int] = ()) -> torch.Tensor:
    n = len(ids)
    segment = np.array(segments or [0] * n, np.int32)
    batch = Batch({"text": Stream(np.array(ids, np.int32), np.array([0, n]), np.arange(n, dtype=np.int32), segment, visibility)})
    moved = batch.map(torch.from_numpy)
    at = torch.tensor([n - 1])
    with torch.no_grad():
        return network.logits("lm", network(moved.streams), moved.streams, Target("text", at, at, at.double()))[0]


def border(prompt: int, n: int) -> Visibility:
    clock = np.maximum(np.arange(n) - prompt + 1, 0).astype(np.int32)
    return Visibility("custom", clock, clock, np.full(n, FOREVER, np.int32), np.zeros(n, np.int32))


@pytest.mark.parametrize("kind", ["prefix_lm", "clm"])
def test_a_prefix_lm_reads_the_prompt_both_ways(kind: str) -> None:
    """Token by token: `prefix_lm` sees the prompt whole, `clm` from left to right, in one and the same model."""
    network = tiny("bert")
    ctx = Context(KNOWN, Layout((0,), (END,), (END,), (0, 1)), 64)
    found = likelihoods(network, {"kind": kind}, TOKENIZER, ctx, PAIRS)
    for (prompt, text), got in zip(PAIRS, found, strict=True):
        before = [0, *TOKENIZER.ids(prompt)]
        after = TOKENIZER.ids(f" {text}" if prompt else text)
        total = 0.0
        for n, token in enumerate(after):
            ids = before + after[:n]
            seen = CAUSAL if kind == "clm" else border(len(before), len(ids))
            total += float(last_row(network, ids, seen).log_softmax(-1)[token])
        assert got.total == pytest.approx(total, rel=1e-9)


def test_a_model_that_was_fine_tuned_is_asked_as_it_was() -> None:
    """`seq2seq` in one stack: the layout of its training, with a token between and segments."""
    network = tiny("bert")
    ctx = Context(KNOWN, Layout((0,), (END,), (END,), (0, 1)), 64)
    pairs = [(a, b) for a, b in PAIRS if a]
    found = likelihoods(network, {"kind": "seq2seq", "target": 5}, TOKENIZER, ctx, pairs)
    for (prompt, text), got in zip(pairs, found, strict=True):
        before, after = [0, *TOKENIZER.ids(prompt), END], TOKENIZER.ids(text)
        total = 0.0
        for n, token in enumerate(after):
            ids = before + after[:n]
            row = last_row(network, ids, border(len(before), len(ids)), [0] * len(before) + [1] * n)
            total += float(row.log_softmax(-1)[token])
        assert got.total == pytest.approx(total, rel=1e-9)


@pytest.mark.parametrize(("system", "asks"), [("xlnet", "query"), ("bert", "attn"), ("bert", "pseudo")])
def test_rows_that_ask_say_it_in_one_pass(system: str, asks: str) -> None:
    """XLNet, ERNIE-GEN, UniLM v2: a pass with an asking row for each word says what writing the text word by word says."""
    network = tiny(system, extra=int(asks == "query"))
    layout = Layout((), (END,), (END, 0), (0, 1), 2) if system == "xlnet" else Layout((0,), (END,), (END,), (0, 1))
    ctx = Context(replace(KNOWN, names={"[ATTN]": 3}), layout, 64)
    pairs = [(a, b) for a, b in PAIRS if a]
    objective = Seq2Seq(asks=asks)  # type: ignore[arg-type]
    found = likelihoods(network, objective.model_dump(), TOKENIZER, ctx, pairs)
    for (prompt, text), got in zip(pairs, found, strict=True):
        ids = np.array(TOKENIZER.ids(prompt), np.int32)
        none = np.zeros((0, 3), np.int64), np.zeros(2, np.int64)
        part = Part(ids, np.array([0, len(ids)]), np.ones(len(ids), bool), np.ones(len(ids), bool), *none)
        prompts = objective.prompts(Tokens({"text": part}, np.zeros(1, np.uint64)), ctx)
        total, after = 0.0, TOKENIZER.ids(text)
        with torch.no_grad():
            writer = Writer(network, prompts, objective.continuation(ctx))
            row = writer.begin()
            for token in after:
                total += float(row[0].log_softmax(-1)[token])
                row = writer.go_on(torch.tensor([token]))
        assert got.total == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize("at_once", [1, 30, 4096])
def test_packing_changes_nothing(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    _, network = gpt2(4)
    monkeypatch.setattr("ziggurat.evaluate.likelihood.TOKENS", at_once)
    found = likelihoods(network, {"kind": "clm"}, TOKENIZER, GPT, PAIRS)
    alone = [likelihoods(network, {"kind": "clm"}, TOKENIZER, GPT, [pair])[0] for pair in PAIRS]
    assert [one.total for one in found] == pytest.approx([one.total for one in alone], rel=1e-12)


def test_normalisation() -> None:
    _, network = gpt2(4)
    about: Any = (network, {"kind": "clm"}, TOKENIZER, GPT)
    prompts, choices = ["is it so?", "你好"], [["yes", "of course", "no"], ["世界", "是"]]

    def total(prompt: str, text: str) -> float:
        return likelihoods(*about, [(prompt, text)])[0].total

    plain = [[total(p, c) for c in options] for p, options in zip(prompts, choices)]
    tokens = [[3, 8, 2], [2, 1]]
    sizes = [[3, 9, 2], [6, 3]]
    assert scores(*about, prompts, choices) == [pytest.approx(row, rel=1e-12) for row in plain]
    got = scores(*about, prompts, choices, Likelihood(by="token"))
    assert got == [pytest.approx(np.array(row) / n, rel=1e-12) for row, n in zip(plain, tokens)]
    got = scores(*about, prompts, choices, Likelihood(by="byte"))
    assert got == [pytest.approx(np.array(row) / n, rel=1e-12) for row, n in zip(plain, sizes)]
    for premise in ("", "answer:"):
        got = scores(*about, prompts, choices, Likelihood(by="pmi", premise=premise))
        gaps = ["", ""] if premise else [" ", ""]  # at the beginning a choice is the tokens that it is behind the prompt
        want = [[x - total(premise, gap + c) for x, c in zip(row, options)] for row, options, gap in zip(plain, choices, gaps)]
        assert got == [pytest.approx(row, rel=1e-9) for row in want]


def test_what_stands_between_prompt_and_choice() -> None:
    _, network = gpt2(4)

    def total(prompt: str, text: str, joiner: str | None = None) -> float:
        return likelihoods(network, {"kind": "clm"}, TOKENIZER, GPT, [(prompt, text)], Likelihood(joiner=joiner))[0].total

    assert total("a:", "b") == total("a:", "b", " ") != total("a:", "b", "")
    assert total("a: ", "b") == total("a:", "b", " ")  # the space is there already
    assert total("你", "好") == total("你", "好", "") != total("你", "好", " ")


def test_a_long_prompt_loses_its_beginning(caplog: pytest.LogCaptureFixture) -> None:
    _, network = gpt2(4)
    ctx = replace(GPT, length=12)
    with caplog.at_level(logging.WARNING):
        (got,) = likelihoods(network, {"kind": "clm"}, TOKENIZER, ctx, [("a" * 30 + "bcdefghi", "xyz")])
    (want,) = likelihoods(network, {"kind": "clm"}, TOKENIZER, ctx, [("abcdefghi", "xyz")])
    assert got == want and "1 prompt(s)" in caplog.text
    with pytest.raises(UserError, match="longer than the 12 tokens"):
        likelihoods(network, {"kind": "clm"}, TOKENIZER, ctx, [("", "x" * 13)])


def test_what_cannot_be_scored_is_said() -> None:
    _, network = gpt2(4)
    about: Any = (network, {"kind": "clm"}, TOKENIZER, GPT)
    for letters in (
        ["A", "B", "C"],
        ["(a)", "(b)"],
        ["A.", "B."],
        ["B", "A"],
        ["c", " (a)", "B.", "d:"],
        ["F", "G"],
        ["A\n", "B\n"],
    ):
        with pytest.raises(UserError, match=r"letters of options(.|\n)*as in 'vitamin C'"):
            scores(*about, ["which? A. x B. y"], [letters])
    for words in ["a", "an"], ["A"], ["vitamin A", "vitamin B"], ["1", "2"]:
        scores(*about, ["which?"], [words])
    with pytest.raises(UserError, match="empty"):
        scores(*about, ["which?"], [["a", " "]])
    with pytest.raises(UserError, match="'~' has no token"):
        scores(*about, ["which?"], [["a", "~"]])
    with pytest.raises(UserError, match="2 prompts, but choices for 1"):
        scores(*about, ["one", "two"], [["a", "b"]])
    masked = tiny("bert")
    with pytest.raises(UserError, match="cannot say how probable"):
        likelihoods(masked, {"kind": "mlm"}, TOKENIZER, GPT, PAIRS)


@pytest.mark.parametrize("kind", ["clm", "seq2seq"])
def test_a_prompt_is_whole_exactly_where_nothing_of_it_is_left_out(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """At every length from 14 tokens to 39: `reads_whole` says no where `scores` tells of a prompt that it cuts."""
    network = tiny("bert")
    options = ["the end", "a"]
    objective = {"kind": kind, "target": 4} if kind == "seq2seq" else {"kind": kind}
    seen = set()
    for length in range(14, 40):
        ctx = Context(KNOWN, Layout((0,), (END,), (END,), (0, 1)), length)
        prompt = "one two three four one two"
        caplog.clear()
        scores(network, objective, TOKENIZER, ctx, [prompt], [options])
        whole = reads_whole(network, objective, TOKENIZER, ctx)(prompt, options)
        assert whole == ("too long" not in caplog.text)
        seen.add(whole)
    assert seen == {True, False}


def test_prompts_with_examples() -> None:
    rows = [{"text": "one", "pair": "eins"}, {"text": "two", "pair": "zwei"}]
    solved = [({"text": f"t{n}", "pair": f"p{n}"}, f"a{n}") for n in range(5)]
    assert Prompt(template="Q: {text}\nA:").texts(rows) == ["Q: one\nA:", "Q: two\nA:"]
    how = Prompt(template="{text} / {pair} =", shots=2, between="\n")
    made = how.texts(rows, solved)
    for text, row in zip(made, rows):
        *examples, last = text.split("\n")
        assert last == f"{row['text']} / {row['pair']} =" and len(set(examples)) == 2
        assert all(e in [f"t{n} / p{n} = a{n}" for n in range(5)] for e in examples)
    assert made == how.texts(rows, solved) and made != Prompt(**{**how.model_dump(), "seed": 1}).texts(rows, solved)
    assert Prompt(template="答：", shots=1).texts([{}], [({}, "是")]) == ["答：是\n\n答："]
    with pytest.raises(UserError, match="2 examples are asked for, and 1"):
        how.texts(rows, solved[:1])
    with pytest.raises(UserError, match=r"cannot be filled.*question"):
        Prompt(template="{question}").texts(rows)


def test_examples_that_do_not_fit_are_left_out_whole() -> None:
    rows = [{"text": "one"}, {"text": "a question that is very long by itself"}]
    solved = [({"text": f"t{n}"}, f"a{n}") for n in range(5)]
    how = Prompt(template="{text}", shots=4)
    all_four = how.texts(rows, solved)
    made = how.fitting(rows, solved, lambda n, prompt: len(prompt) <= (20, 10)[n])
    assert made == [("\n\n".join(all_four[0].split("\n\n")[2:]), 2), (rows[1]["text"], 0)]
    assert how.fitting(rows, solved, lambda n, prompt: True) == [(text, 4) for text in all_four]
