"""Every knob of every part of a model, on one page. The modules built from these end in Layer, Stack, Model or Head."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ziggurat.config import Spec
from ziggurat.nn.parts import (
    Absolute,
    Attention,
    Block,
    Buckets,
    ContentBuckets,
    Distances,
    Embed,
    Functional,
    Init,
    LayerNorm,
    Learned,
    Mlp,
    Norm,
    Pool,
    Relative,
    RMSNorm,
    Rotary,
    Share,
    Sinusoidal,
    Unplaced,
    VocabProjection,
)

__all__ = [
    "Absolute",
    "Adversaries",
    "Attention",
    "Block",
    "BoundaryHead",
    "Buckets",
    "ClassHead",
    "ContentBuckets",
    "Dials",
    "Distances",
    "Embed",
    "EncoderDecoder",
    "Functional",
    "Head",
    "Init",
    "LayerNorm",
    "Learned",
    "Mlp",
    "Model",
    "Network",
    "Norm",
    "Pool",
    "PoolerHead",
    "RMSNorm",
    "Relative",
    "ReplacedHead",
    "Rotary",
    "Share",
    "Single",
    "Sinusoidal",
    "TokenHead",
    "Unplaced",
    "VocabHead",
    "VocabProjection",
    "class_heads",
    "compares_segments",
    "knows_distances",
]


class Single(Spec):
    """One stack: an encoder, a decoder or a prefix LM, as its visibility says."""

    kind: Literal["single"] = "single"
    vocab: int = Field(30522, gt=0)
    """Rows of the token table."""
    width: int = Field(768, gt=0)
    layers: int = Field(12, gt=0)
    heads: int = Field(12, gt=0)
    mlp: int = Field(3072, gt=0)
    """Width of the feed-forward layer."""
    visibility: Literal["full", "causal"] = "full"
    embed: Embed = Embed()
    block: Block = Block()
    pattern: tuple[Attention, ...] = ()
    """Attention of layer i is entry i modulo their number, instead of the block's; empty = the block's everywhere."""
    opening: Literal["norm", "plain"] = "norm"
    """`plain`: the first layer's attention has no norm before it, because the embeddings' own has just been (ModernBERT)."""
    share: Share | None = None
    buckets: Buckets | None = None
    """A relative bias that all layers share (UniLM v2)."""
    final_norm: Norm | None = None
    """Norm after the last layer (pre-norm stacks)."""
    project: VocabProjection = VocabProjection()
    pool: Pool = Pool()
    init: Init = Init()

    @model_validator(mode="after")
    def _fits(self) -> Single:
        _divides(self.width, self.heads, self.block.attention)
        if self.share and self.pattern:
            raise ValueError("layers that share their weights cannot alternate: leave out share or pattern")
        if self.opening == "plain" and self.block.norm_at == "post":
            raise ValueError("opening: plain is for norms before each part (norm_at: pre)")
        return self


class EncoderDecoder(Spec):
    """Two stacks that share their token table; the decoder's layers also read the encoder's last state (T5, BART)."""

    kind: Literal["encoder_decoder"] = "encoder_decoder"
    vocab: int = Field(50265, gt=0)
    """Rows of the token table."""
    width: int = Field(768, gt=0)
    layers: int = Field(6, gt=0)
    """Layers of the encoder."""
    decoder_layers: int = Field(6, gt=0)
    heads: int = Field(12, gt=0)
    mlp: int = Field(3072, gt=0)
    """Width of the feed-forward layer."""
    embed: Embed = Embed(positions=Learned(length=1024, offset=2), norm=LayerNorm(eps=1e-5))
    """Of either stack; the decoder alone has the `extra` vectors."""
    block: Block = Block(norm=LayerNorm(eps=1e-5))
    decoder_attention: Attention | None = None
    """The decoder's attention to itself where it is not the block's (ProphetNet)."""
    buckets: Buckets | None = None
    """A relative bias, one for each stack, that all its layers share (T5); cross attention has none."""
    final_norm: Norm | None = None
    """Norm after the last layer of either stack."""
    project: VocabProjection = VocabProjection(transform=False, bias=True)
    pool: Pool = Pool(at="last", by="dense")
    """On the decoder's stream."""
    start: Literal["pad", "end", "first"] = "end"
    """The token a decoder begins with: the pad (T5), the end token (BART), or the first token of the layout."""
    words: Literal["encoder", "decoder"] = "decoder"
    """The stack whose vectors stand for single words when they are labelled: the decoder, which reads the same text one step
    later (BART, 3.2), or the encoder alone (T5)."""
    init: Init = Init()

    @property
    def visibility(self) -> Literal["full"]:
        """The encoder's; the decoder's is causal."""
        return "full"

    @model_validator(mode="after")
    def _fits(self) -> EncoderDecoder:
        _divides(self.width, self.heads, self.block.attention)
        return self


def _divides(width: int, heads: int, attention: Attention) -> None:
    if attention.head_width is None and width % heads:
        raise ValueError(f"width {width} is not a multiple of heads {heads}")


class Dials(Spec):
    """The size of a generator."""

    layers: int = Field(12, gt=0)
    width: int = Field(256, gt=0)
    heads: int = Field(4, gt=0)
    mlp: int = Field(1024, gt=0)


class Adversaries(Spec):
    """A small generator that fills masks and a discriminator that finds its fillings; they share all embeddings (ELECTRA).

    What else asks about the model (its width, its pooling) is told about the discriminator, which is what is kept.
    """

    kind: Literal["adversaries"] = "adversaries"
    discriminator: Single = Single()
    generator: Dials = Dials()

    @property
    def generator_model(self) -> Single:
        """The generator as a model of its own: the discriminator's parts in another size, on the same embeddings."""
        own = self.discriminator
        embed = own.embed.model_copy(update={"width": own.embed.width or own.width})
        return own.model_copy(update={**self.generator.model_dump(), "embed": embed})

    @property
    def vocab(self) -> int:
        return self.discriminator.vocab

    @property
    def width(self) -> int:
        return self.discriminator.width

    @property
    def layers(self) -> int:
        return self.discriminator.layers

    @property
    def heads(self) -> int:
        return self.discriminator.heads

    @property
    def mlp(self) -> int:
        return self.discriminator.mlp

    @property
    def embed(self) -> Embed:
        return self.discriminator.embed

    @property
    def block(self) -> Block:
        return self.discriminator.block

    @property
    def visibility(self) -> Literal["full", "causal"]:
        return self.discriminator.visibility

    @property
    def pool(self) -> Pool:
        return self.discriminator.pool

    @property
    def project(self) -> VocabProjection:
        return self.discriminator.project

    @property
    def init(self) -> Init:
        return self.discriminator.init

    @model_validator(mode="after")
    def _fits(self) -> Adversaries:
        _divides(self.generator.width, self.generator.heads, self.discriminator.block.attention)
        return self


Model = Annotated[Single | EncoderDecoder | Adversaries, Field(discriminator="kind")]


class VocabHead(Spec):
    """Scores over the vocabulary at chosen tokens, as `Single.project` says."""

    kind: Literal["vocab"] = "vocab"


class PoolerHead(Spec):
    """BERT's pooler: a dense layer and tanh on the summary token, read by every `ClassHead` with `by: pooler`."""

    kind: Literal["pooler"] = "pooler"


class ClassHead(Spec):
    """Scores over classes for a whole document. `outputs = 1`: regression, or one score a choice."""

    kind: Literal["class"] = "class"
    outputs: int = Field(2, gt=0)
    by: Literal["pooler", "dense", "plain", "transform"] = "pooler"
    bias: bool = True


class TokenHead(Spec):
    """One linear layer on every chosen token: tagging (outputs = labels), answer spans (outputs = 2)."""

    kind: Literal["token"] = "token"
    outputs: int = Field(2, gt=0)


class ReplacedHead(Spec):
    """One score a token: was it put in by the generator? A dense layer and the activation before it (ELECTRA)."""

    kind: Literal["replaced"] = "replaced"


class BoundaryHead(Spec):
    """Scores over the vocabulary from the two vectors around a span and the place in it."""

    kind: Literal["boundary"] = "boundary"
    places: int = Field(20, gt=0)
    """Places of a span that have a vector of their own; those behind share the last."""
    size: int = Field(200, gt=0)
    """Width of these vectors."""


Head = Annotated[VocabHead | PoolerHead | ClassHead | TokenHead | ReplacedHead | BoundaryHead, Field(discriminator="kind")]


class Network(Spec):
    """A body and its named heads: all that is needed to rebuild a model from a checkpoint."""

    model: Model = Single()
    heads: dict[str, Head] = {}


def compares_segments(model: Model) -> bool:
    """Whether segments are only compared with one another, so that any numbers will do (XLNet)."""
    distances = model.block.attention.distances
    return isinstance(distances, Relative) and distances.segments


def knows_distances(model: Model) -> bool:
    """Whether the model is one stack that knows places by their distance alone, so that text may stand before its first token."""
    return isinstance(model, Single) and isinstance(model.embed.positions, Unplaced)


def class_heads(model: Model, name: str, outputs: int) -> dict[str, Head]:
    """The heads of one classification task in the system's own manner of pooling."""
    by = model.pool.by
    head: dict[str, Head] = {name: ClassHead(outputs=outputs, by=by, bias=by != "plain")}
    return {"pooler": PoolerHead(), **head} if by == "pooler" else head
