"""Structures: streams in, hidden vectors out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from ziggurat.nn import spec
from ziggurat.nn.layers import BlockLayer, EmbedLayer, Source, norm_layer
from ziggurat.nn.visibility import Plan, cross_plan, plan
from ziggurat.types import Stream

Reads = Mapping[str, Tensor] | None
"""For each stream the only rows of it that somebody will read, int64[R] ascending without repeats."""


class SingleModel(nn.Module):
    """One stack over the stream `text`; its visibility makes it an encoder, a decoder or a prefix LM."""

    def __init__(self, part: spec.Single):
        super().__init__()
        self.spec = part
        self.embed = EmbedLayer(part.embed, part.vocab, part.width)
        self.blocks = nn.ModuleList(BlockLayer(part.block, part.width, part.heads, part.mlp) for _ in range(part.layers))
        self.final_norm = norm_layer(part.final_norm, part.width) if part.final_norm else None

    @property
    def table(self) -> Tensor:
        """[V, width]: the token embeddings."""
        assert self.embed.token is not None
        return self.embed.token.weight

    def forward(self, streams: Mapping[str, Stream], keep: Sequence[str] = (), read: Reads = None) -> dict[str, Tensor]:
        """{"text": [T, width]}, and each layer's output named in `keep` ("blocks.3") under that name.

        `read`: rows that somebody will read; the others may come out as 0. For a sparse masked LM that saves most of the last
        layer: a tenth of a small model's step.
        """
        stream = streams["text"]
        hidden, kept = _through(self.blocks, self.embed(stream), plan(stream), self.final_norm, keep, _rows(read, "text"))
        return {"text": hidden, **kept}


class StackModel(nn.Module):
    """One of the two stacks of an encoder-decoder: embeddings (without the token table, which both share) and blocks."""

    def __init__(self, part: spec.EncoderDecoder, layers: int, *, decoder: bool):
        super().__init__()
        self.embed = EmbedLayer(part.embed, part.vocab, part.width, own=False, extra=decoder)
        shape = part.block, part.width, part.heads, part.mlp
        self.blocks = nn.ModuleList(BlockLayer(*shape, cross=decoder) for _ in range(layers))
        self.final_norm = norm_layer(part.final_norm, part.width) if part.final_norm else None


class EncoderDecoderModel(nn.Module):
    """An encoder over the stream `encoder` and a decoder over `decoder`, whose every layer reads the encoder's last state."""

    def __init__(self, part: spec.EncoderDecoder):
        super().__init__()
        self.spec = part
        self.token = nn.Embedding(part.vocab, part.width)
        self.encoder = StackModel(part, part.layers, decoder=False)
        self.decoder = StackModel(part, part.decoder_layers, decoder=True)

    @property
    def table(self) -> Tensor:
        """[V, width]: the token embeddings."""
        return self.token.weight

    def forward(self, streams: Mapping[str, Stream], keep: Sequence[str] = (), read: Reads = None) -> dict[str, Tensor]:
        """{"encoder": [S, width], "decoder": [T, width]}, and layers named in `keep` ("encoder.blocks.3"). The decoder reads
        all of the encoder, so `read` saves work in the decoder only."""
        source, target = streams["encoder"], streams["decoder"]
        parts = {"encoder": self.encoder, "decoder": self.decoder}
        wanted = {
            name: [k.removeprefix(f"{name}.") for k in keep if k.startswith(f"{name}.")] for name in parts
        }  # each stack by its own names
        x = self.encoder.embed(source, self.table)
        encoded, kept = _through(self.encoder.blocks, x, plan(source), self.encoder.final_norm, wanted["encoder"], None)
        x = self.decoder.embed(target, self.table)
        seen, rows = Source(encoded, cross_plan(target, source)), _rows(read, "decoder")
        stack = self.decoder
        decoded, more = _through(stack.blocks, x, plan(target), stack.final_norm, wanted["decoder"], rows, seen)
        named = {f"encoder.{k}": v for k, v in kept.items()} | {f"decoder.{k}": v for k, v in more.items()}
        return {"encoder": encoded, "decoder": decoded, **named}


StructureModel = SingleModel | EncoderDecoderModel


def build_model(part: spec.Model) -> StructureModel:
    return SingleModel(part) if isinstance(part, spec.Single) else EncoderDecoderModel(part)


def _rows(read: Reads, stream: str) -> Tensor | None:
    if read is None:
        return None
    return read.get(stream)


def _through(
    blocks: nn.ModuleList,
    x: Tensor,
    layout: Plan,
    norm: nn.Module | None,
    keep: Sequence[str],
    rows: Tensor | None,
    source: Source | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """A stack's vectors [T, width] and the outputs of the layers named in `keep`. Of the last layer only `rows` are computed,
    when they are few and no layer is kept; the others are 0."""
    total, kept = len(x), {}
    if rows is not None and (keep or 2 * len(rows) > total):
        rows = None
    for i, block in enumerate(blocks):
        x = block(x, layout, rows if i == len(blocks) - 1 else None, source)
        if f"blocks.{i}" in keep:
            kept[f"blocks.{i}"] = x
    if norm is not None:
        x = norm(x)
    if rows is not None:
        x = x.new_zeros(total, x.shape[1]).index_copy(0, rows, x)
    return x, kept
