"""Structures: streams in, hidden vectors out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor, nn

from ziggurat.nn import spec
from ziggurat.nn.cache import Cache
from ziggurat.nn.layers import BlockLayer, EmbedLayer, Source, norm_layer
from ziggurat.nn.lone import few_keys
from ziggurat.nn.memory import Memory, with_memory
from ziggurat.nn.positions import BucketLayer, RotaryLayer
from ziggurat.nn.visibility import Plan, cross_plan, plan
from ziggurat.types import Stream

Reads = Mapping[str, Tensor] | None
"""For each stream the only rows of it that somebody will read, int64[R] ascending without repeats."""


class SingleModel(nn.Module):
    """One stack over the stream `text`; its visibility makes it an encoder, a decoder or a prefix LM.

    `embed`: the embeddings of another stack, which this one shares.
    """

    def __init__(self, part: spec.Single, embed: EmbedLayer | None = None):
        super().__init__()
        self.spec = part
        self.embed = EmbedLayer(part.embed, part.vocab, part.width) if embed is None else None
        self.lent = (embed,)  # in a tuple: its parameters are the other stack's
        # the matrix from the tables to the model's width is a stack's own even where the tables are shared
        inner = part.embed.width or part.width
        wider = inner != part.width or part.embed.widen == "always"
        self.widen = nn.Linear(inner, part.width) if embed is not None and wider else None
        self.blocks = _blocks(part)
        self.buckets = BucketLayer(part.buckets, part.heads, past=part.visibility == "causal") if part.buckets else None
        self.final_norm = norm_layer(part.final_norm, part.width) if part.final_norm else None

    @property
    def table(self) -> Tensor:
        """[V, width of the tables]: the token embeddings."""
        embed = self.embed or self.lent[0]
        assert embed is not None and embed.token is not None
        return embed.token.weight

    @property
    def order(self) -> list[BlockLayer]:
        """The layers in the order that a vector passes through them; shared ones stand in it several times."""
        share, layers = self.spec.share, self.spec.layers
        if share is None:
            return list(self.blocks)  # type: ignore[arg-type]
        # layer i belongs to group i * groups / layers, rounded down; divided as the Hub's class does, for odd splits to round alike
        groups: list[nn.ModuleList] = list(self.blocks)  # type: ignore[arg-type]
        return [block for i in range(layers) for block in groups[int(i / (layers / share.groups))]]  # type: ignore[misc]

    def embedded(self, stream: Stream) -> Tensor:
        """[T, width]: what the first layer reads."""
        if self.embed is not None:
            return self.embed(stream)
        (lender,) = self.lent
        assert lender is not None
        x = lender.drop(lender.summed(stream))
        return x if self.widen is None else self.widen(x)

    def forward(
        self,
        streams: Mapping[str, Stream],
        keep: Sequence[str] = (),
        read: Reads = None,
        cache: Cache | None = None,
        memory: Memory | None = None,
    ) -> dict[str, Tensor]:
        """{"text": [T, width]}, and under their names what `keep` lists: the first layer's input ("embed"), outputs ("blocks.3").

        `read`: rows that somebody will read; the others may come out as 0. For a sparse masked LM that saves most of the last
        layer: a tenth of a small model's step. With a `cache` the stream continues what the cache holds. `memory`: what the documents
        remember of an earlier window (`nn/memory`).
        """
        stream = streams["text"]
        layout = plan(stream) if cache is None else cache.slots.step(stream)
        if memory is not None:
            layout = with_memory(layout, stream, memory)
        elif cache is None and _scores(self):
            layout = few_keys(layout, stream)
        hidden, kept = _through(self, self.embedded(stream), layout, keep, _rows(read, "text"), cache=cache, memory=memory)
        return {"text": hidden, **kept}


class StackModel(nn.Module):
    """One of the two stacks of an encoder-decoder: embeddings (without the token table, which both share) and blocks."""

    def __init__(self, part: spec.EncoderDecoder, layers: int, *, decoder: bool):
        super().__init__()
        self.embed = EmbedLayer(part.embed, part.vocab, part.width, own=False, extra=decoder)
        block = part.block
        if decoder and part.decoder_attention is not None:
            block = block.model_copy(update={"attention": part.decoder_attention})
        self.blocks = nn.ModuleList(BlockLayer(block, part.width, part.heads, part.mlp, cross=decoder) for _ in range(layers))
        self.buckets = BucketLayer(part.buckets, part.heads, past=decoder) if part.buckets else None
        self.final_norm = norm_layer(part.final_norm, part.width) if part.final_norm else None

    @property
    def order(self) -> list[BlockLayer]:
        return list(self.blocks)  # type: ignore[arg-type]


class EncoderDecoderModel(nn.Module):
    """An encoder over the stream `encoder` and a decoder over `decoder`, whose every layer reads the encoder's last state."""

    def __init__(self, part: spec.EncoderDecoder):
        super().__init__()
        self.spec = part
        self.token = nn.Embedding(part.vocab, part.embed.width or part.width)
        self.encoder = StackModel(part, part.layers, decoder=False)
        self.decoder = StackModel(part, part.decoder_layers, decoder=True)

    @property
    def table(self) -> Tensor:
        """[V, width]: the token embeddings."""
        return self.token.weight

    def forward(
        self, streams: Mapping[str, Stream], keep: Sequence[str] = (), read: Reads = None, cache: Cache | None = None
    ) -> dict[str, Tensor]:
        """{"encoder": [S, width], "decoder": [T, width]}, and layers named in `keep` ("encoder.blocks.3"). The decoder reads
        all of the encoder, so `read` saves work in the decoder only. Without a stream `decoder` the encoder is computed alone, and
        `read` saves work there. With a `cache` the decoder continues what the cache holds, and the stream `encoder` is given with
        the first step alone."""
        alone = "decoder" not in streams
        if cache is not None and cache.encoded is not None:
            target = streams["decoder"]
            return {"decoder": self._decoded(target, cache.encoded, cache.cross(target), read, cache)}
        source = streams["encoder"]
        parts = {"encoder": self.encoder, "decoder": self.decoder}
        wanted = {
            name: [k.removeprefix(f"{name}.") for k in keep if k.startswith(f"{name}.")] for name in parts
        }  # each stack by its own names
        x = self.encoder.embed(source, self.table)
        encoded, kept = _through(self.encoder, x, plan(source), wanted["encoder"], _rows(read, "encoder") if alone else None)
        if alone:
            return {"encoder": encoded, **{f"encoder.{k}": v for k, v in kept.items()}}
        target = streams["decoder"]
        if cache is not None:
            cache.encoder, cache.encoded = source, encoded
            return {"encoder": encoded, "decoder": self._decoded(target, encoded, cache.cross(target), read, cache)}
        x = self.decoder.embed(target, self.table)
        seen, rows = Source(encoded, cross_plan(target, source)), _rows(read, "decoder")
        layout = few_keys(plan(target), target) if _scores(self.decoder) else plan(target)
        decoded, more = _through(self.decoder, x, layout, wanted["decoder"], rows, seen)
        named = {f"encoder.{k}": v for k, v in kept.items()} | {f"decoder.{k}": v for k, v in more.items()}
        return {"encoder": encoded, "decoder": decoded, **named}

    def _decoded(self, target: Stream, encoded: Tensor, layout: Plan, read: Reads, cache: Cache) -> Tensor:
        """[T, width]: a step of the decoder."""
        x, seen = self.decoder.embed(target, self.table), Source(encoded, layout)
        return _through(self.decoder, x, cache.slots.step(target), (), _rows(read, "decoder"), seen, cache)[0]


class AdversariesModel(nn.Module):
    """A generator and a discriminator over the stream `text`; the generator uses the discriminator's embeddings.

    Called as a structure it is the discriminator; an objective that needs both calls `generator` and `discriminator` itself.
    """

    def __init__(self, part: spec.Adversaries):
        super().__init__()
        self.spec = part
        self.discriminator = SingleModel(part.discriminator)
        self.generator = SingleModel(part.generator_model, self.discriminator.embed)

    @property
    def table(self) -> Tensor:
        """[V, width of the tables]: the token embeddings of both."""
        return self.discriminator.table

    def forward(self, streams: Mapping[str, Stream], keep: Sequence[str] = (), read: Reads = None) -> dict[str, Tensor]:
        """What the discriminator says: see `SingleModel.forward`."""
        return self.discriminator(streams, keep, read)


StructureModel = SingleModel | EncoderDecoderModel | AdversariesModel


def build_model(part: spec.Model) -> StructureModel:
    match part:
        case spec.Single():
            return SingleModel(part)
        case spec.EncoderDecoder():
            return EncoderDecoderModel(part)
        case spec.Adversaries():
            return AdversariesModel(part)


def _blocks(part: spec.Single) -> nn.ModuleList:
    """The layers, each once: `blocks.<i>`, or `blocks.<group>.<inner>` where groups of layers share their weights."""
    shape = part.width, part.heads, part.mlp
    if part.share is not None:
        return nn.ModuleList(
            nn.ModuleList(BlockLayer(part.block, *shape) for _ in range(part.share.inner)) for _ in range(part.share.groups)
        )
    attention = part.pattern or (part.block.attention,)
    return nn.ModuleList(
        BlockLayer(
            part.block.model_copy(update={"attention": attention[i % len(attention)]}),
            *shape,
            opening=i == 0 and part.opening == "plain",
        )
        for i in range(part.layers)
    )


def _scores(stack: SingleModel | StackModel) -> bool:
    """Whether its layers add what they make of distances to their scores; then keys that nobody sees cost most."""
    return any(not isinstance(block.attention.distances, RotaryLayer | None) for block in stack.order)


def _rows(read: Reads, stream: str) -> Tensor | None:
    if read is None:
        return None
    return read.get(stream)


def _through(
    stack: SingleModel | StackModel,
    x: Tensor,
    layout: Plan,
    keep: Sequence[str],
    rows: Tensor | None,
    source: Source | None = None,
    cache: Cache | None = None,
    memory: Memory | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """A stack's vectors [T, width] and the outputs of the layers named in `keep`. Of the last layer only `rows` are computed,
    when they are few and that layer is not kept; the others are 0."""
    total, kept = len(x), {"embed": x} if "embed" in keep else {}
    if stack.buckets is not None:
        layout = replace(layout, bias=stack.buckets(layout))
    blocks = stack.order
    if rows is not None and (f"blocks.{len(blocks) - 1}" in keep or 2 * len(rows) > total):
        rows = None
    for i, block in enumerate(blocks):
        remembered = None if memory is None else memory.hidden[i]
        x = block(x, layout, rows if i == len(blocks) - 1 else None, source, cache.layers[i] if cache else None, remembered)
        if f"blocks.{i}" in keep:
            kept[f"blocks.{i}"] = x
    if stack.final_norm is not None:
        x = stack.final_norm(x)
    if rows is not None:
        x = x.new_zeros(total, x.shape[1]).index_copy(0, rows, x)
    return x, kept
