"""What an objective is: which pieces of text go together, what is hidden, what must be said, and the loss.

An objective is a frozen spec; its fields are its hyper-parameters. The CPU half (`form`, `corrupt`) is numpy over whole
blocks of documents; the model half (`heads`, `losses`) names the heads it needs and sums their losses.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from ziggurat.config import Spec
from ziggurat.context import Context
from ziggurat.errors import UserError
from ziggurat.nn import spec as parts
from ziggurat.types import Batch, Losses, Stream, Target, Tokens

if TYPE_CHECKING:
    from torch import Tensor

    from ziggurat.nn.network import NetworkModel
    from ziggurat.text.tokenizer import Tokenizer
    from ziggurat.text.vectors import Vectors


def _reason(wanted: tuple[str, ...], kind: str) -> str:
    """Why an objective for models of the structures `wanted` makes no sense on one of structure `kind`."""
    if wanted == ("adversaries",):
        return "a small generator fills masks in it, and a discriminator finds the fillings, so it needs the two of them (system electra)"
    if kind == "adversaries":
        return "it trains one stack, and these two learn from each other by rtd; later stages take the discriminator alone"
    if kind == "single":
        return (
            "it writes its answer in a decoder that reads another stack, and one stack has none (prefix_lm, ernie_gen and pmlm are its "
            "relatives for one stack)"
        )
    return (
        "one stack both reads and answers in it, so an encoder-decoder would train one of its two (mlm_mass, span_corruption and "
        "denoise hide text for both)"
    )


def context_of(
    model: parts.Model, tokenizer: Tokenizer, length: int, seed: int = 0, tables: Mapping[str, Any] | None = None
) -> Context:
    """What objectives may know when a model is trained on this tokenizer's tokens, `length` at most an example.

    Raises:
        UserError: the model's decoder begins with a token that the tokenizer lacks, or the tokenizer gives its last token a
            segment number (as XLNet's does) for which the model's table has no row.
    """
    vocab, layout = tokenizer.vocab, tokenizer.layout
    rows = model.embed.segments
    if layout.summary is not None and 0 < rows <= layout.summary and not parts.compares_segments(model):
        raise UserError(
            f"the tokenizer gives its last token the segment number {layout.summary}, and the model has {rows} segments",
            "choose another tokenizer, or a model that compares segments (xlnet)",
        )
    start: int | None = vocab.pad
    streams, words = ("text",), "text"
    if isinstance(model, parts.EncoderDecoder):
        streams, words = ("encoder", "decoder"), model.words  # type: ignore[assignment]
        start = {"pad": vocab.pad, "end": vocab.end, "first": next(iter(layout.first), None)}[model.start]
        if start is None:
            raise UserError(
                f"the decoder begins with the {model.start} token, and the tokenizer has none", "choose another tokenizer"
            )
    assert start is not None
    return Context(vocab, layout, length, model.visibility, seed, start=start, streams=streams, words=words, tables=tables or {})


class Asked(NamedTuple):
    """A target after the forward pass, ready for its head."""

    head: str
    hidden: Mapping[str, Tensor]
    """[T, width] of each stream; rows that the target does not name may be 0."""
    streams: Mapping[str, Stream]
    """What the model read."""
    target: Target


class Supply(NamedTuple):
    """What a corpus has for objectives to feed on."""

    documents: int
    several: int
    """Of them, documents of two sentences or more."""
    marks: int
    """Phrases that are marked in them."""


class Lack(NamedTuple):
    """What a corpus does not give an objective."""

    message: str
    hint: str
    fatal: bool = True
    """Nothing is left to learn; otherwise only less."""


class Objective(Spec):
    """Base of all objectives. A subclass adds `kind: Literal[...]` and writes what differs."""

    kind: str
    structures: ClassVar[tuple[str, ...]] = ("single",)
    """Structures it makes sense on."""
    extra: ClassVar[int] = 0
    """Learned input vectors that are no vocabulary item: content id -1 is the first, -2 the second."""
    labelled: ClassVar[bool] = False
    """Needs supervised columns; its stage is a fine-tuning."""
    columns: ClassVar[tuple[str, ...]] = ()
    """What its source must declare beside `text`."""
    chained: ClassVar[bool] = False
    """Its examples are windows of running text, each read in one pass and followed by the next (`Batch.before`): what a memory is for."""
    writes: ClassVar[bool] = False
    """Its answers are texts, the column `pair`; at test time they are generated."""

    @property
    def marked(self) -> bool:
        """Whether it needs phrases: marks of the data, or what a source's `phrases` finds."""
        return False

    def grouped(self, tokens: Tokens) -> Tokens:
        """The block with the words that this objective hides together made one; asked before `form`. Default: unchanged."""
        return tokens

    def form(self, tokens: Tokens, ctx: Context) -> Batch:
        """Documents -> examples, each one document of the batch, at most `ctx.length` tokens. Default: windows."""
        from ziggurat.data.cut import windows

        return windows(tokens, ctx)

    def corrupt(self, batch: Batch, ctx: Context) -> Batch:
        """Hide and ask. Commutes with `join`: all randomness hangs on document keys. Default: unchanged."""
        return batch

    def rows(self, ctx: Context) -> Mapping[str, int]:
        """The most tokens that one example has in each stream: the length of a packed row. `ctx.length` counts content tokens;
        an objective with further rows (queries, predicting streams) or with two streams says so here."""
        return {"text": ctx.length}

    @property
    def vectors(self) -> tuple[Vectors, ...]:
        """The word vectors that its tables are made from, which `prepare` trains on the corpus."""
        return ()

    def tables(self, tokenizer: Tokenizer, run: Path | None = None) -> dict[str, Any]:
        """What the context must carry besides, read from the objective's own files, or from what `prepare` has made in the run folder
        `run`; each thing has a `digest`."""
        return {}

    def tokens(self) -> tuple[str, ...]:
        """Special tokens of its own, which a tokenizer that is trained for it is given."""
        return ()

    def needs(self, ctx: Context) -> None:
        """Raise `UserError` when the vocabulary or layout cannot serve this objective (no mask token ...)."""

    def starved(self, supply: Supply) -> list[Lack]:
        """What a corpus lacks for this objective to have something to learn; empty when it is fed. Default: phrases, where it needs
        them."""
        if self.marked and not supply.marks:
            return [Lack(f"{self.kind} hides phrases, and none is marked in the text", "give the source other `phrases`")]
        return []

    def equipped(self, model: parts.Model) -> parts.Model:
        """A model to be trained from scratch, with the learned query vectors that this objective needs."""
        if isinstance(model, parts.Adversaries) or model.embed.extra >= self.extra:
            return model
        return model.model_copy(update={"embed": model.embed.model_copy(update={"extra": self.extra})})

    def part_of(self, model: parts.Model) -> parts.Model:
        """What it trains of a model: of a generator and a discriminator the latter alone, unless it is made for both."""
        if isinstance(model, parts.Adversaries) and model.kind not in self.structures:
            return model.discriminator
        return model

    def misfits(self, model: parts.Model) -> list[str]:
        """Why this model cannot be trained with it; empty when it can."""
        found = []
        if model.kind not in self.structures:
            found.append(
                f"{self.kind} is for models of structure {' or '.join(self.structures)}, this one is {model.kind}: {_reason(self.structures, model.kind)}"
            )
        elif model.embed.extra < self.extra:
            found.append(f"{self.kind} needs {self.extra} learned query vectors, the model has {model.embed.extra}")
        return found

    def forgets(self, model: parts.Model, memory: int) -> list[str]:
        """Why this model cannot be trained with it and a memory of so many tokens (0 = none); empty when it can."""
        found = []
        if memory and not self.chained:
            found.append(
                f"{self.kind} does not read running text window by window, so there is nothing that a `memory` could go on from"
            )
        if memory and not parts.knows_distances(model):
            found.append(
                "a `memory` needs one stack without absolute positions, in which a token has one place only and cannot stand before the "
                "first (xlnet, nezha and modernbert are such)"
            )
        return found

    def remembered(self, batch: Batch) -> np.ndarray:
        """bool[T]: the tokens of the stream `text` that a memory holds for the examples that go on from these (numpy side). Default:
        the text, without special tokens and rows that are no text."""
        unit = batch.streams["text"].unit
        assert unit is not None, "what is text is known by its units"
        found: np.ndarray = unit >= 0
        return found

    def heads(self, model: parts.Model) -> Mapping[str, parts.Head]:
        """The heads it trains, by target name."""
        raise NotImplementedError

    def head_of(self, target: str) -> str:
        """The head that answers target `target`; vocabulary targets share the head `lm`."""
        return target

    def weight_of(self, target: str) -> float:
        """How much the target's mean loss weighs in the sum."""
        return 1.0

    def step_weights(self, counts: Mapping[str, float]) -> dict[str, float]:
        """The same for each target of a step, given the `counts` of all of its micro-batches."""
        return {name: self.weight_of(name) for name in counts}

    def asked(self, network: NetworkModel, batch: Batch) -> Mapping[str, Asked]:
        """The forward pass: for each target what its head reads. Default: one pass over the batch's own streams."""
        hidden = network(batch.streams, read=network.read(batch.streams, batch.targets.values()))
        return {name: Asked(self.head_of(name), hidden, batch.streams, target) for name, target in batch.targets.items()}

    def losses(self, network: NetworkModel, batch: Batch) -> Losses:
        """For each target its (total, count) after the forward pass. Default: what each named head says."""
        return {name: network.loss(*asked) for name, asked in self.asked(network, batch).items()}

    def counts(self, batch: Batch) -> dict[str, float]:
        """The summed target weights, known before the forward pass."""
        return {name: float(target.weight.sum()) for name, target in batch.targets.items()}


EXAMPLES = "examples of "
"""Before a target's name among the counts: of how many examples its predictions are."""


def examples_of(batch: Batch, target: Target) -> np.ndarray:
    """The examples that a target's predictions are of, each once: documents, or where these compete the keys they share."""
    owner = target.index if target.at == "document" else batch.streams[target.stream].document()[target.index]
    found: np.ndarray = np.unique(owner if target.group is None else batch.keys[owner])
    return found
