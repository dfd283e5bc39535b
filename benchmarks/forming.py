"""How fast the CPU half is: tokens of text a second and core of reading, forming, corrupting and packing, for every objective.

    OMP_NUM_THREADS=1 python benchmarks/forming.py [--length 128] [--tokens 2000000] [--seconds 4] [--only mlm] [--profile]

Text is synthetic (Zipf ids, words of 1 to 4 pieces, a sentence about every 20 tokens), in documents that fill an example or of
log-normal length; objectives that read phrases, labels, tags or pairs of texts get them. One thread, no prefetch. The rate counts the tokens
of the text that was read, whatever an objective makes of them (queries, second streams), by CPU time, from block to block, in the best of
a few rounds. The goals: 3 M tokens/s for masked and causal LM, 1 M for all others, on documents that fill 128 tokens. Exits 1 when one is missed.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from pydantic import TypeAdapter

from ziggurat.context import Context, Layout, Vocab
from ziggurat.data.loader import Loader
from ziggurat.data.shards import Shards
from ziggurat.data.writing import write_shards
from ziggurat.objectives import OBJECTIVES, AnyObjective, Objective
from ziggurat.text.similar import SimilarWords
from ziggurat.types import Document, Mark

SENTINELS = {f"<extra_id_{n}>": 100 + n for n in range(100)}
ATTN = {"[ATTN]": 99}
VOCAB = Vocab(30000, 0, 4, 1, 3, (0, 1, 2, 3, 4, *range(99, 200)), SENTINELS | ATTN)
LAYOUT, ONE_END = Layout((2,), (3,), (3,), (0, 1)), Layout((), (3,), (3,))
FAST, SLOW = 3e6, 1e6
CASES: dict[str, dict[str, Any]] = {
    "mlm, tokens": {"kind": "mlm"},
    "mlm, whole words": {"kind": "mlm", "unit": "word"},
    "mlm, n-grams": {"kind": "mlm", "unit": "ngram"},
    "mlm, spans": {"kind": "mlm", "unit": "span"},
    "mlm, phrases": {"kind": "mlm", "unit": "phrase"},
    "clm": {"kind": "clm"},
    "prefix_lm": {"kind": "prefix_lm"},
    "plm": {"kind": "plm"},
    "plm, one segment": {"kind": "plm", "pairs": False, "reverse": 0},
    "mac": {"kind": "mac"},
    "sbo": {"kind": "sbo"},
    "nsp": {"kind": "nsp"},
    "sop": {"kind": "sop"},
    "sentence_structure": {"kind": "sentence_structure"},
    "word_order": {"kind": "word_order"},
    "joint (bert)": {"kind": "joint", "parts": [{"kind": "mlm"}, {"kind": "nsp"}]},
    "joint (albert)": {"kind": "joint", "parts": [{"kind": "mlm", "unit": "ngram"}, {"kind": "sop"}]},
    "joint (structbert)": {"kind": "joint", "parts": [{"kind": "mlm"}, {"kind": "word_order"}, {"kind": "sentence_structure"}]},
    "unilm": {"kind": "unilm"},
    "pmlm": {"kind": "pmlm"},
    "rtd": {"kind": "rtd"},
    "ernie_gen": {"kind": "ernie_gen"},
    "future_lm": {"kind": "future_lm"},
    "mixture": {"kind": "mixture", "parts": [{"kind": "mlm"}, {"kind": "prefix_lm"}, {"kind": "clm"}]},
    "span_corruption": {"kind": "span_corruption"},
    "denoise": {"kind": "denoise"},
    "mass": {"kind": "mass"},
    "mlm_mass": {"kind": "mlm_mass", "fragment": {"ratio": 0.3}},
    "future": {"kind": "future"},
    "classify": {"kind": "classify", "labels": ["a", "b"]},
    "regress": {"kind": "regress"},
    "tag": {"kind": "tag", "labels": ["B", "I", "O"]},
    "seq2seq, one stack": {"kind": "seq2seq"},
    "seq2seq, masks": {"kind": "seq2seq", "asks": "mask"},
    "seq2seq, [ATTN]": {"kind": "seq2seq", "asks": "attn"},
    "seq2seq, two stacks": {"kind": "seq2seq"},
}
TWO_STACKS = ("span_corruption", "denoise", "mass", "mlm_mass", "future", "seq2seq, two stacks")
QUICK = ("mlm, tokens", "mlm, whole words", "mlm, spans", "clm")
"""What has the higher goal."""


class Encoded(NamedTuple):
    ids: np.ndarray
    words: np.ndarray
    sentences: np.ndarray
    offsets: np.ndarray
    units: int = 0


class Numbers:
    """A 'tokenizer' of texts that say how many tokens they have; each character is one."""

    fingerprint = "synthetic"
    vocab = VOCAB

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        return [self._one(*map(int, text.split())) for text in texts]

    def _one(self, seed: int, n: int) -> Encoded:
        rng = np.random.default_rng(seed)
        ids = 200 + rng.zipf(1.2, n) % (VOCAB.size - 200)
        words, sentences = rng.random(n) < 0.75, rng.random(n) < 0.05
        words[0] = sentences[0] = True
        return Encoded(ids.astype(np.int32), words | sentences, sentences, np.arange(n)[:, None] + np.arange(2))


def documents(tokens: int, room: int, ragged: bool, kind: str) -> Iterator[Document]:
    """Texts of about so many tokens in all; `kind` says what they carry: `plain`, `phrases`, `tags`, `labels` or `pairs`."""
    rng = np.random.default_rng(0)
    seed = 0
    while tokens > 0:
        n = int(np.clip(rng.lognormal(4.8, 1.0), 3, 4000)) if ragged else room
        number, texts, marks, fields = seed, {"text": n}, [], {}
        if kind == "pairs":
            texts = {"text": max(n // 2, 1), "pair": max(n - n // 2 - 2, 1)}
        if kind in ("pairs", "labels"):
            fields = {"label": str("ab"[seed % 2]) if kind == "pairs" else float(seed)}
        if kind == "phrases":
            marks = [Mark(at, at + 3, "phrase") for at in range(2, n - 3, 12)]
        if kind == "tags":
            marks = [Mark(at, at + 1, "BIO"[at % 3]) for at in range(0, n, 2)]
        yield Document(
            {part: f"{number} {size}".ljust(size) for part, size in texts.items()}, f"rows:{seed}", tuple(marks), fields
        )
        tokens, seed = tokens - sum(texts.values()), seed + 1


def carries(objective: Objective, name: str) -> str:
    """What its documents must carry."""
    if name in ("tag", "regress"):
        return {"tag": "tags", "regress": "labels"}[name]
    return "pairs" if objective.labelled else "phrases" if objective.marked else "plain"


def context(name: str, length: int) -> Context:
    rng = np.random.default_rng(0)
    words: dict[tuple[int, ...], list[tuple[int, ...]]] = {
        (i,): [(j,) for j in rng.integers(200, VOCAB.size, 5).tolist()] for i in range(200, 10_000)
    }
    tables = {"similar": SimilarWords.of(words)} if name == "mac" else {}
    if name in TWO_STACKS:
        layout = ONE_END if name == "span_corruption" else LAYOUT
        return Context(VOCAB, layout, length, start=3, streams=("encoder", "decoder"), tables=tables)
    return Context(VOCAB, LAYOUT, length, tables=tables)


class Rate:
    """One objective's loader, measured in short rounds: the best round counts, as other jobs only ever slow it down."""

    def __init__(self, shards: Shards, objective: Objective, ctx: Context):
        rows = objective.rows(ctx)
        objective.needs(ctx)
        self.loader = Loader({"all": shards}, {"all": 1.0}, objective, ctx, row=rows, tokens=32 * sum(rows.values()), ahead=False)
        self.stream = iter(self.loader)
        self.best, self.live, self.room = 0.0, 0, 0
        next(self.stream)

    def round(self, seconds: float) -> None:
        """From the first batch of a block to the first batch of another one."""
        state = self.loader.state()
        block, read, started = state["0.block"], state["0.all.tokens"], time.process_time()
        while state["0.block"] == block or time.process_time() - started < seconds:
            block = state["0.block"]
            batch = next(self.stream)
            self.live += batch.live_tokens()
            self.room += sum(len(stream.content) for stream in batch.streams.values())
            state = self.loader.state()
        self.best = max(self.best, (state["0.all.tokens"] - read) / (time.process_time() - started))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=2_000_000)
    parser.add_argument("--seconds", type=float, default=4.0, help="for each objective, in all rounds")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--only", default="", help="objectives whose name contains this")
    parser.add_argument("--profile", action="store_true")
    args = parser.parse_args()
    made: dict[str, Objective] = {name: TypeAdapter(AnyObjective).validate_python(spec) for name, spec in CASES.items()}
    left_out = set(OBJECTIVES) - {objective.kind for objective in made.values()}
    assert not left_out, f"no case for {sorted(left_out)}"
    made = {name: objective for name, objective in made.items() if args.only in name}
    found: dict[str, list[float]] = {}
    for ragged in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            shards = {}
            for kind in {carries(objective, name) for name, objective in made.items()}:
                text = documents(args.tokens, LAYOUT.room(args.length), ragged, kind)
                shards[kind] = write_shards(f"{folder}/{kind}", text, Numbers())
            rates = {name: Rate(shards[carries(o, name)], o, context(name, args.length)) for name, o in made.items()}
            for _ in range(args.rounds):
                for measured in rates.values():
                    measured.round(args.seconds / args.rounds)
            for name, measured in rates.items():
                found.setdefault(name, []).extend([measured.best / 1e6, measured.live / measured.room])
            for name, measured in rates.items() if args.profile else ():
                print(f"{name}, {'ragged' if ragged else 'full'} documents")
                with cProfile.Profile() as profile:
                    measured.round(args.seconds / args.rounds)
                pstats.Stats(profile).sort_stats("tottime").print_stats(12)
    print(
        f"| M tokens/s | documents of {args.length} tokens | rows filled | log-normal lengths | rows filled |\n|---|---|---|---|---|"
    )
    for name, (full, filled, ragged_rate, ragged_filled) in found.items():
        print(f"| {name} | {full:.1f} | {filled:.1%} | {ragged_rate:.1f} | {ragged_filled:.1%} |")
    slow = [name for name, numbers in found.items() if numbers[0] * 1e6 < (FAST if name in QUICK else SLOW)]
    print(f"below their goal: {', '.join(slow)}" if slow else "all reach their goals")
    sys.exit(bool(slow))


if __name__ == "__main__":
    main()
