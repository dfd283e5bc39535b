"""How fast the CPU half is: tokens a second and core of reading, forming, corrupting and packing, by objective.

    OMP_NUM_THREADS=1 python benchmarks/forming.py [--length 128] [--tokens 2000000] [--rounds 8] [--profile]

Text is synthetic (Zipf ids, words of 1 to 4 pieces, documents of log-normal length), one thread, no prefetch; the rate counts live
tokens of the packed batches, by CPU time, in the best of a few rounds. The goal is 3 M tokens/s for masked and causal LM.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ziggurat.context import Context, Layout, Vocab
from ziggurat.data.cut import windows
from ziggurat.data.loader import Loader
from ziggurat.data.shards import Shards
from ziggurat.data.writing import write_shards
from ziggurat.types import Batch, Document, Tokens

VOCAB = Vocab(size=30000, pad=0, mask=4, unk=1, end=3, special=(0, 1, 2, 3, 4))
LAYOUT = Layout((2,), (3,), (3,), (0, 1))


class Encoded(NamedTuple):
    ids: np.ndarray
    words: np.ndarray
    sentences: np.ndarray
    offsets: np.ndarray
    units: int = 0


class Numbers:
    """A 'tokenizer' of texts that say how many tokens they have."""

    fingerprint = "synthetic"
    vocab = VOCAB

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        return [self._one(*map(int, text.split())) for text in texts]

    def _one(self, seed: int, n: int) -> Encoded:
        rng = np.random.default_rng(seed)
        ids = 5 + rng.zipf(1.2, n) % (VOCAB.size - 5)
        words, sentences = rng.random(n) < 0.75, rng.random(n) < 0.05
        words[0] = sentences[0] = True
        return Encoded(ids.astype(np.int32), words | sentences, sentences, np.zeros((n, 2), np.int64))


class Plain:
    """The default form and no corruption: what the data room alone costs."""

    def form(self, tokens: Tokens, ctx: Context) -> Batch:
        return windows(tokens, ctx)

    def corrupt(self, batch: Batch, ctx: Context) -> Batch:
        return batch


def documents(tokens: int, room: int, short: bool) -> Iterator[Document]:
    rng = np.random.default_rng(0)
    seed = 0
    while tokens > 0:
        n = int(np.clip(rng.lognormal(4.8, 1.0), 3, 4000)) if short else room
        yield Document({"text": f"{seed} {n}"})
        tokens, seed = tokens - n, seed + 1


def objectives() -> dict[str, Any]:
    from ziggurat.objectives.causal import Causal
    from ziggurat.objectives.masked import Masked
    from ziggurat.objectives.pairs import NextSentence, SentenceOrder

    return {
        "form + pack only": Plain(),
        "mlm token": Masked(),
        "mlm word": Masked(unit="word"),
        "mlm ngram": Masked(unit="ngram"),
        "mlm span": Masked(unit="span"),
        "clm": Causal(),
        "nsp": NextSentence(),
        "sop": SentenceOrder(),
    }


class Rate:
    """One objective's loader, measured in short rounds: the best round counts, as other jobs only ever slow it down."""

    def __init__(self, shards: Shards, objective: Any, ctx: Context):
        row = ctx.length
        self.stream = iter(Loader({"all": shards}, {"all": 1.0}, objective, ctx, row=row, tokens=32 * row, ahead=False))
        self.best, self.live, self.rows = 0.0, 0, 0

    def round(self, seconds: float) -> None:
        live, started = 0, time.process_time()
        while time.process_time() - started < seconds:
            batch = next(self.stream)
            live += batch.live_tokens()
            self.rows += len(batch.streams["text"].content)
        self.best = max(self.best, live / (time.process_time() - started))
        self.live += live


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=2_000_000)
    parser.add_argument("--seconds", type=float, default=4.0, help="for each objective, in all rounds")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--only", default="", help="objectives whose name contains this")
    parser.add_argument("--profile", action="store_true")
    args = parser.parse_args()
    ctx = Context(VOCAB, LAYOUT, args.length)
    for short in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            text = documents(args.tokens, LAYOUT.room(args.length), short)
            shards = write_shards(f"{folder}/shards", text, Numbers())
            print(f"documents of {'log-normal length' if short else f'{args.length} tokens'}: {len(shards):,}")
            rates = {name: Rate(shards, o, ctx) for name, o in objectives().items() if args.only in name}
            profile = cProfile.Profile()
            for _ in range(args.rounds):
                for measured in rates.values():
                    if args.profile:
                        profile.enable()
                    measured.round(args.seconds / args.rounds)
                    profile.disable()
            for name, measured in rates.items():
                filled = measured.live / measured.rows
                print(f"  {name:18} {measured.best / 1e6:6.2f} M tokens/s   rows {filled:6.1%} filled", flush=True)
            if args.profile:
                pstats.Stats(profile).sort_stats("tottime").print_stats(15)


if __name__ == "__main__":
    main()
