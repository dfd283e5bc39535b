"""A body and its heads: what a stage trains and a checkpoint holds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ziggurat.nn import spec
from ziggurat.nn.attention import AttentionLayer
from ziggurat.nn.boundary import BoundaryHeadLayer, boundaries
from ziggurat.nn.cache import Cache
from ziggurat.nn.heads import ReplacedHeadLayer, VocabHeadLayer, build_head, summary, summary_rows
from ziggurat.nn.loss import binary_cross_entropy, cross_entropy, group_cross_entropy, squared_error, vocab_cross_entropy
from ziggurat.nn.memory import Memory, layers_to_keep
from ziggurat.nn.structures import SingleModel, build_model
from ziggurat.types import Loss, Stream, Target


class NetworkModel(nn.Module):
    """Parameters are named `model.*` (the body) and `heads.<name>.*`; the vocabulary projection is tied to the token table."""

    def __init__(self, part: spec.Network):
        super().__init__()
        self.spec = part
        self.model = build_model(part.model)
        self.heads = nn.ModuleDict({name: build_head(head, part.model) for name, head in part.heads.items()})
        self._reading: tuple[Memory | None, dict[str, Tensor]] | None = None

    def forward(
        self,
        streams: Mapping[str, Stream],
        keep: Sequence[str] = (),
        read: Mapping[str, Tensor] | None = None,
        cache: Cache | None = None,
        memory: Memory | None = None,
    ) -> dict[str, Tensor]:
        """What the structure says; with a `cache`, of streams that continue what it holds. Only a single stack can have a `memory`."""
        if self._reading is not None:
            memory, kept = self._reading
            assert isinstance(self.model, SingleModel), "only a single stack has a memory"
            names = layers_to_keep(len(self.model.order))
            said = self.model(streams, [*keep, *names], read, cache, memory)
            kept.update((name, said[name]) for name in names)
            return said
        if memory is not None:
            assert isinstance(self.model, SingleModel), "only a single stack has a memory"
            return self.model(streams, keep, read, cache, memory)
        return self.model(streams, keep, read) if cache is None else self.model(streams, keep, read, cache)

    @contextmanager
    def reading(self, memory: Memory | None) -> Iterator[dict[str, Tensor]]:
        """Inside, a forward pass reads with `memory` and leaves in the dict what each layer read (`layers_to_keep`), to be remembered:
        so the objective that makes the pass need not know of it."""
        kept: dict[str, Tensor] = {}
        self._reading = memory, kept
        try:
            yield kept
        finally:
            self._reading = None

    def cache(self, rows: int) -> Cache:
        """An empty cache for the generation of `rows` texts."""
        model = self.spec.model
        if isinstance(model, spec.EncoderDecoder):
            layers = model.decoder_layers
        else:
            layers = model.layers * (model.share.inner if isinstance(model, spec.Single) and model.share else 1)
        return Cache(rows, layers, self.model.table.device)

    def read(self, streams: Mapping[str, Stream], targets: Iterable[Target]) -> dict[str, Tensor]:
        """The rows of each stream, int64[R] ascending, that the heads of these targets look at."""
        found: dict[str, list[Tensor]] = {}
        for target in targets:
            rows = target.index
            if target.at == "around":
                rows = torch.cat(boundaries(rows)[:2])
            elif target.at == "document":
                rows = summary_rows(streams[target.stream].bounds, rows, self.spec.model.pool.at)
            found.setdefault(target.stream, []).append(rows)
        return {stream: torch.unique(torch.cat(rows)) for stream, rows in found.items()}

    def rows(self, name: str, hidden: Mapping[str, Tensor], streams: Mapping[str, Stream], target: Target) -> Tensor:
        """[K, width]: what head `name` reads for each of the target's K predictions."""
        vectors = hidden[target.stream]
        if target.at == "token":
            return vectors[target.index]
        own = self.heads[name]
        if isinstance(own, BoundaryHeadLayer):
            return own.around(vectors, target.index)
        picked = summary(vectors, streams[target.stream].bounds, target.index, self.spec.model.pool.at)
        head = self.spec.heads[name]
        return self.heads["pooler"](picked) if getattr(head, "by", "") == "pooler" else picked

    def logits(self, name: str, hidden: Mapping[str, Tensor], streams: Mapping[str, Stream], target: Target) -> Tensor:
        """[K, outputs] scores of head `name`, and [K, vocabulary] of a vocabulary head."""
        head = self.heads[name]
        x = head(self.rows(name, hidden, streams, target))
        if isinstance(head, VocabHeadLayer | BoundaryHeadLayer):
            return nn.functional.linear(x, self.table_of(head), head.bias)
        return x

    def table_of(self, head: VocabHeadLayer | BoundaryHeadLayer) -> Tensor:
        """[V, width of the tables]: what the head's vectors are compared with."""
        own = getattr(head, "table", None)
        return self.model.table if own is None else own

    def loss(self, name: str, hidden: Mapping[str, Tensor], streams: Mapping[str, Stream], target: Target) -> Loss:
        """(total, count) of head `name` on one target; (0, 0) for a target without predictions."""
        count = target.weight.sum()
        if len(target.index) == 0:
            return Loss(hidden[target.stream].sum() * 0.0, count)
        head = self.heads[name]
        if isinstance(head, VocabHeadLayer | BoundaryHeadLayer):
            x = head(self.rows(name, hidden, streams, target))
            total = vocab_cross_entropy(x, self.table_of(head), head.bias, target.value, target.weight)
            return Loss(total, count)
        scores = self.logits(name, hidden, streams, target)
        if target.group is not None:
            asked = scores.gather(1, target.value[:, None])[:, 0]
            return Loss(group_cross_entropy(asked, target.group, target.weight), count)
        if isinstance(head, ReplacedHeadLayer):
            return Loss(binary_cross_entropy(scores, target.value, target.weight), count)
        if target.value.is_floating_point():
            return Loss(squared_error(scores, target.value, target.weight), count)
        return Loss(cross_entropy(scores, target.value, target.weight), count)

    def set_dropout(self, rate: float) -> None:
        """One rate everywhere: embeddings, attention weights, residual parts, document and token heads."""
        for module in self.modules():
            if isinstance(module, nn.Dropout):
                module.p = rate
            elif isinstance(module, AttentionLayer):
                module.dropout = rate

    @torch.no_grad()
    def initialise(self, generator: torch.Generator, only: Sequence[str] | None = None) -> None:
        """Fresh weights by the spec's `init`, for the parameters named in `only` or for all: matrices and tables
        normal, norms 1, biases 0."""
        init, depth = self.spec.model.init, self.spec.model.layers
        norms = {f"{n}.weight" for n, m in self.named_modules() if isinstance(m, nn.LayerNorm | nn.RMSNorm)}
        inputs = {f"{n}.weight": m.in_features for n, m in self.named_modules() if isinstance(m, nn.Linear)}
        queries = {f"{n}.q.weight": m.q.out_features // m.heads for n, m in self.named_modules() if _unscaled(m)}
        for name, parameter in self.named_parameters():
            if only is not None and name not in only:
                continue
            if parameter.ndim < 2:
                parameter.fill_(1.0 if name in norms else 0.0)
                continue
            std = init.std
            if init.matrices == "inputs":
                fan = inputs.get(name, parameter.shape[1] if name.startswith("heads.") else 0)
                fan = self.spec.model.width if name.endswith("buckets.table.weight") else fan
                std = fan**-0.5 * queries.get(name, 1) ** -0.5 if fan else init.std
            if init.residual == "scaled" and name.endswith(("attention.out.weight", "cross.out.weight", "mlp.down.weight")):
                std /= math.sqrt(2 * depth)
            if init.truncated:
                nn.init.trunc_normal_(parameter, 0.0, std, -2 * std, 2 * std, generator=generator)
            else:
                parameter.normal_(0.0, std, generator=generator)

    def parameter_count(self, *, embeddings: bool = True) -> int:
        """Trainable numbers, with or without the embedding tables."""
        tables = {id(m.weight) for m in self.modules() if isinstance(m, nn.Embedding)}
        return sum(p.numel() for p in self.parameters() if embeddings or id(p) not in tables)


def _unscaled(module: nn.Module) -> bool:
    return isinstance(module, AttentionLayer) and module.scale == 1.0
