"""Replaced token detection: a generator fills the masks, and a discriminator says of every token whether it was put in.

Paper: ELECTRA (Clark et al., 2020, 3.1, 3.3). Needs: a mask token, a model of two halves. Feeds: stream "text", targets "lm" (the
generator's, at the drawn tokens) and "rtd" (the discriminator's, at every token, special ones too).

The released code differs in two things. It draws places with replacement and, where one was drawn twice, writes the mean of the
two sampled ids, which is an unrelated token; here no place is drawn twice. It leaves 15% of the drawn tokens unmasked
(`intact: 0.15`), the paper none. In both, the generator's sample is written at every drawn place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field

from ziggurat.context import Context
from ziggurat.errors import check
from ziggurat.nn import spec as parts
from ziggurat.objectives.base import Asked
from ziggurat.objectives.masked import Hiding, disguised
from ziggurat.types import Batch, text_target

if TYPE_CHECKING:
    from torch import Tensor

    from ziggurat.nn.network import NetworkModel

CHUNK = 256
"""Drawn tokens whose distributions over the vocabulary exist at once."""


class Replaced(Hiding):
    """Masked LM of a generator, and of every token: is it the original, or the generator's sample?

    A sample that happens to be the original counts as the original. Samples have no gradient: the generator learns from its
    masked LM alone. Which id is sampled is decided by a keyed number that the batch carries, so it depends neither on the batch
    size nor on resumption.
    """

    kind: Literal["rtd"] = "rtd"
    structures: ClassVar[tuple[str, ...]] = ("adversaries",)
    intact: float = Field(0.0, ge=0, lt=1)
    """Share of the drawn tokens that the generator sees as they are (paper 0, released code 0.15)."""
    weight: float = Field(50.0, gt=0)
    """Weight of the discriminator's mean loss; the generator's has 1."""

    def needs(self, ctx: Context) -> None:
        check(
            ctx.vocab.mask is not None,
            "replaced token detection needs a mask token, and the tokenizer has none",
            "use a tokenizer with [MASK] or <mask>",
        )

    def heads(self, model: parts.Model) -> Mapping[str, parts.Head]:
        return {"lm": parts.VocabHead(), "rtd": parts.ReplacedHead()}

    def weight_of(self, target: str) -> float:
        return self.weight if target == "rtd" else 1.0

    def corrupt(self, batch: Batch, ctx: Context) -> Batch:
        """The stream is what the generator reads. The values of `rtd` are all 0 here: what is replaced is known after sampling."""
        stream = batch.streams["text"]
        at, _ = self.choose(batch, ctx)
        content = disguised(batch, at, (1 - self.intact, 0.0, self.intact), "rtd", ctx)
        owner = np.searchsorted(stream.bounds, at, side="right") - 1
        noise = ctx.uniform(batch.keys, owner, at - stream.bounds[owner], "rtd.sample")
        alive = np.flatnonzero(np.repeat(batch.alive, stream.lengths))
        targets = {
            "lm": replace(text_target(at, stream.content[at]), noise=noise),
            "rtd": text_target(alive, np.zeros(len(alive), np.int64)),
        }
        streams = {**batch.streams, "text": replace(stream, content=content)}
        return replace(batch, streams=streams, targets={**batch.targets, **targets})

    def asked(self, network: NetworkModel, batch: Batch) -> dict[str, Asked]:
        """The generator reads the stream and fills it, the discriminator reads what came out."""
        from ziggurat.nn.structures import AdversariesModel

        halves, streams, lm, rtd = network.model, batch.streams, batch.targets["lm"], batch.targets["rtd"]
        assert isinstance(halves, AdversariesModel)
        filled = halves.generator(streams, read=network.read(streams, [lm]))
        ids = sampled(network, Asked("lm", filled, streams, lm))
        stream = streams["text"]
        content, put_in = stream.content.clone(), rtd.value.new_zeros(len(stream.content))
        content[lm.index] = ids.to(content.dtype)
        put_in[lm.index] = (ids != lm.value).to(put_in.dtype)
        seen = {**streams, "text": replace(stream, content=content)}
        found = halves.discriminator(seen, read=network.read(seen, [rtd]))
        return {
            "lm": Asked("lm", filled, streams, lm),
            "rtd": Asked("rtd", found, seen, replace(rtd, value=put_in[rtd.index])),
        }


def sampled(network: NetworkModel, asked: Asked) -> Tensor:
    """int64[K]: one id for each prediction, drawn from the softmax of its scores by the inverse of its distribution function at
    the target's `noise`. It has no gradient."""
    import torch

    target = asked.target
    assert target.noise is not None, "there is nothing to draw with"
    ids = torch.zeros_like(target.index)
    with torch.no_grad():
        for start in range(0, len(target.index), CHUNK):
            rows = slice(start, start + CHUNK)
            few = replace(target, index=target.index[rows], value=target.value[rows], weight=target.weight[rows])
            scores = network.logits(asked.head, asked.hidden, asked.streams, few)
            below = scores.double().softmax(-1).cumsum(-1)
            at = target.noise[rows, None] * below[:, -1:]  # the last sum is 1 but for rounding
            ids[rows] = torch.searchsorted(below, at, right=True)[:, 0].clamp(max=scores.shape[1] - 1)
    return ids
