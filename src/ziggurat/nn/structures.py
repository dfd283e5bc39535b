"""Structures: streams in, hidden vectors out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from ziggurat.nn import spec
from ziggurat.nn.layers import BlockLayer, EmbedLayer, norm_layer
from ziggurat.nn.visibility import plan
from ziggurat.types import Stream


class SingleModel(nn.Module):
    """One stack over the stream `text`; its visibility makes it an encoder, a decoder or a prefix LM."""

    def __init__(self, part: spec.Single):
        super().__init__()
        self.spec = part
        self.embed = EmbedLayer(part.embed, part.vocab, part.width)
        self.blocks = nn.ModuleList(BlockLayer(part.block, part.width, part.heads, part.mlp) for _ in range(part.layers))
        self.final_norm = norm_layer(part.final_norm, part.width) if part.final_norm else None

    def forward(
        self, streams: Mapping[str, Stream], keep: Sequence[str] = (), read: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """{"text": [T, width]}, and each layer's output named in `keep` ("blocks.3") under that name.

        `read`: the only rows of the stream that somebody will read, int64[R] without repeats; the others may come out as 0.
        For a sparse masked LM that saves most of the last layer: a tenth of a small model's step.
        """
        stream = streams["text"]
        layout = plan(stream)
        x = self.embed(stream)
        kept: dict[str, Tensor] = {}
        rows = read.get("text") if read and not keep else None
        if rows is not None and 2 * len(rows) > len(x):
            rows = None
        for i, block in enumerate(self.blocks):
            x = block(x, layout, rows if i == len(self.blocks) - 1 else None)
            if f"blocks.{i}" in keep:
                kept[f"blocks.{i}"] = x
        if self.final_norm is not None:
            x = self.final_norm(x)
        if rows is not None:
            x = x.new_zeros(len(stream.content), x.shape[1]).index_copy(0, rows, x)
        return {"text": x, **kept}
