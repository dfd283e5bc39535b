"""Writes docs/visibility.md: who may look at whom, drawn from the code, for every objective on one short text.

python docs/draw_visibility.py > docs/visibility.md
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter

from ziggurat.context import Context, Layout, Vocab, mix
from ziggurat.evaluate.heldout import to_device
from ziggurat.nn.visibility import cross_plan, plan
from ziggurat.objectives import AnyObjective
from ziggurat.pipeline.show import draw_visibility
from ziggurat.types import Part, Tokens

SENTINELS = {f"<extra_id_{n}>": 50 + n for n in range(9)}
VOCAB = Vocab(60, 0, 4, 1, 3, (0, 1, 2, 3, 4, *range(50, 60)), {**SENTINELS, "[ATTN]": 59})
LAYOUT = Layout((2,), (3,), (3,), (0, 1))
NAMES = {0: "pad", 2: "first", 3: "last", 4: "MASK", 59: "ATTN", **{i: f"<{i - 50}>" for i in range(50, 59)}}
HEAD = """# Who may look at whom

Drawn from the code (`docs/draw_visibility.py`) on a text of ten tokens `a` to `j`: a row is a query, a column a key, `#` means that the query may look at the key. All of it is one rule over
five integers a token (`ziggurat/nn/visibility.py`): a key is alive from `opens` to `closes`, a query has a time, `clock`; lane-mates see each other. Rows with `-` under `opens` are keys for
nobody: they only ask.
"""
PAGES: tuple[tuple[str, str, dict[str, Any], str], ...] = (
    ("Masked LM", "BERT and its kin: everything sees everything.", {"kind": "mlm", "rate": 0.3}, "full"),
    ("Causal LM", "GPT: each token sees the past and itself.", {"kind": "clm"}, "full"),
    ("Prefix LM", "The prefix sees itself both ways, the rest its past.", {"kind": "prefix_lm", "share": [0.4, 0.5]}, "full"),
    (
        "Permuted LM",
        "XLNet: tokens in a random order, and one row that asks for each predicted token.",
        {"kind": "plm", "pairs": False, "reverse": 0, "rate": 0.3},
        "full",
    ),
    ("UniLM, from the right", "A visibility, not a reversed text.", {"kind": "unilm", "modes": [0, 0, 0, 1]}, "full"),
    (
        "Pseudo-masked LM",
        "UniLM v2: originals and pseudo masks behind the text; each step sees the steps before it.",
        {"kind": "pmlm", "rate": 0.3, "replace": [1, 0, 0]},
        "full",
    ),
    (
        "ERNIE-GEN",
        "The contextual flow is a prefix LM; rows of [ATTN] ask word by word, then span by span.",
        {"kind": "ernie_gen", "fragments": [{"share": 1, "shortest": 2, "longest": 3}]},
        "full",
    ),
    (
        "Future n-grams",
        "ProphetNet's decoder alone: two rows that ask for each token, from a past ever shorter.",
        {"kind": "future_lm"},
        "full",
    ),
    (
        "Span corruption",
        "T5: the encoder sees all, the decoder its past and all of the encoder.",
        {"kind": "span_corruption", "rate": 0.3},
        "two",
    ),
    ("MASS", "The decoder may not look at the encoder's masked slots.", {"kind": "mass", "replace": [1, 0, 0]}, "two"),
)


def example(objective: dict[str, Any], streams: str) -> Any:
    """One document of ten tokens, formed and corrupted."""
    ids = np.arange(5, 15, dtype=np.int32)
    words = np.ones(10, bool)
    sentences = np.isin(np.arange(10), (0, 5))
    none = np.zeros((0, 3), np.int64), np.zeros(2, np.int64)
    tokens = Tokens({"text": Part(ids, np.array([0, 10]), words, sentences, *none)}, mix(np.array([6], np.uint64)))
    more: dict[str, Any] = {"start": 3, "streams": ("encoder", "decoder")} if streams == "two" else {}
    ctx = Context(VOCAB, LAYOUT, 16, **more)
    made = TypeAdapter(AnyObjective).validate_python(objective)
    return made.corrupt(made.form(tokens, ctx), ctx)


def name(i: int) -> str:
    return NAMES.get(i) or (f"query{-i}" if i < 0 else chr(92 + i) if 5 <= i < 15 else str(i))


def drawn(batch: Any, stream: str, d: int = 0) -> list[str]:
    """The tokens of a stream's first document, its integers and its matrix."""
    one = batch.streams[stream]
    start, stop = int(one.bounds[d]), int(one.bounds[d + 1])
    lines = draw_visibility(one, d)
    words = [name(int(i)) for i in one.content[start:stop]]
    head = len(lines) - len(words)
    width = max(map(len, words))
    return [" " * (width + 1) + line for line in lines[:head]] + [f"{w:>{width}} {line}" for w, line in zip(words, lines[head:])]


def crossing(batch: Any) -> list[str]:
    """Which rows of the encoder a decoder's row reads."""
    on = to_device(batch, torch.device("cpu"))
    decoder, encoder = on.streams["decoder"], on.streams["encoder"]
    layout = cross_plan(decoder, encoder)
    ours, theirs = (stream.content[: int(stream.bounds[1])].tolist() for stream in (decoder, encoder))
    mask = (
        torch.ones(len(ours), len(theirs), dtype=torch.bool)
        if layout.mask is None
        else layout.mask[0, 0, : len(ours), : len(theirs)]
    )
    return ["encoder  " + " ".join(name(i) for i in theirs)] + [
        f"{name(i):>8} " + " ".join(("#" if s else ".").ljust(len(name(k))) for s, k in zip(row, theirs))
        for i, row in zip(ours, mask.tolist())
    ]


def banded(window: int, causal: bool) -> list[str]:
    """A local layer's mask over ten tokens."""
    from dataclasses import replace

    from ziggurat.types import CAUSAL, FULL

    stream = to_device(example({"kind": "clm"}, "full"), torch.device("cpu")).streams["text"]
    layout = plan(replace(stream, visibility=CAUSAL if causal else FULL)).near(window)
    assert layout.mask is not None
    return ["  " + " ".join("#" if s else "." for s in row) for row in layout.mask[0, 0].tolist()]


def page() -> str:
    parts = [HEAD]
    for title, says, objective, streams in PAGES:
        batch = example(objective, streams)
        blocks = [drawn(batch, stream) for stream in batch.streams]
        blocks += [crossing(batch)] if "decoder" in batch.streams else []
        text = "\n\n".join("\n".join(line.rstrip() for line in block) for block in blocks)
        parts.append(f"## {title}\n\n{says} (`{objective['kind']}`)\n\n```text\n{text}\n```\n")
    local = "\n".join(banded(2, causal=False)), "\n".join(banded(2, causal=True))
    parts.append(
        "## Local layers\n\nModernBERT's window and GPT-3's band are a matter of a layer, not of the text: here 2 positions to either side, and the "
        f"token with the 2 before it.\n\n```text\n{local[0]}\n\n{local[1]}\n```\n"
    )
    return "\n".join(parts)


if __name__ == "__main__":
    print(page(), end="")
