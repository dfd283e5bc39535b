"""Every knob of every part of a model, on one page. The modules built from these end in Layer, Stack, Model or Head."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ziggurat.config import Spec


class LayerNorm(Spec):
    """Layer normalisation (Ba et al., 2016)."""

    kind: Literal["layer_norm"] = "layer_norm"
    eps: float = Field(1e-12, gt=0)


class Learned(Spec):
    """Learned absolute positions, added to the embeddings."""

    kind: Literal["learned"] = "learned"
    length: int = Field(512, gt=0)
    """Longest document in tokens."""
    offset: int = Field(0, ge=0)
    """Rows of the table before the first token's (RoBERTa: 2, because its numbering starts at the pad id + 1)."""


class Embed(Spec):
    """Token, position and segment embeddings, summed."""

    positions: Learned = Learned()
    segments: int = Field(0, ge=0)
    """Rows of the segment table; 0 = no table."""
    extra: int = Field(0, ge=0)
    """Learned input vectors that are no vocabulary item (XLNet's query vector, ProphetNet's n-gram vectors): content id -1 is
    the first, -2 the second."""
    norm: LayerNorm | None = LayerNorm()
    """Norm on the sum; none in GPT-2."""


class Attention(Spec):
    """Multi-head self-attention."""

    bias: bool = True


class Mlp(Spec):
    """The position-wise feed-forward layer."""

    activation: Literal["gelu", "gelu_tanh", "relu"] = "gelu"
    bias: bool = True


class Block(Spec):
    """One Transformer layer."""

    attention: Attention = Attention()
    mlp: Mlp = Mlp()
    norm: LayerNorm = LayerNorm()
    norm_at: Literal["post", "pre"] = "post"
    """`post`: norm after the residual sum (BERT); `pre`: norm before each part (GPT-2)."""


class Pool(Spec):
    """How one vector stands for a whole document."""

    at: Literal["first", "last"] = "first"
    """The summary token: the document's first (BERT) or last (GPT-2)."""
    by: Literal["pooler", "dense", "plain"] = "pooler"
    """`pooler`: one dense layer and tanh shared by all document heads (BERT); `dense`: each head brings its own
    (RoBERTa); `plain`: the vector as it is (GPT-2)."""


class VocabProjection(Spec):
    """How hidden vectors become vocabulary scores: the projection is tied to the token embeddings."""

    transform: bool = True
    """A dense layer, GELU and norm before the projection (BERT, RoBERTa)."""
    bias: bool = True
    """One bias a vocabulary item."""
    activation: Literal["gelu", "gelu_tanh", "relu"] = "gelu"


class Init(Spec):
    """How fresh weights are drawn."""

    std: float = Field(0.02, gt=0)
    truncated: bool = False
    """Normal cut at two standard deviations (BERT)."""
    residual: Literal["same", "scaled"] = "same"
    """`scaled`: projections onto the residual stream start smaller by sqrt(2 layers) (GPT-2)."""


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
    final_norm: LayerNorm | None = None
    """Norm after the last layer (pre-norm stacks)."""
    project: VocabProjection = VocabProjection()
    pool: Pool = Pool()
    init: Init = Init()

    @model_validator(mode="after")
    def _divides(self) -> Single:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        return self


class EncoderDecoder(Spec):
    """Two stacks that share their token table; the decoder's layers also read the encoder's last state (BART)."""

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
    final_norm: LayerNorm | None = None
    """Norm after the last layer of either stack."""
    project: VocabProjection = VocabProjection(transform=False, bias=True)
    pool: Pool = Pool(at="last", by="dense")
    """On the decoder's stream."""
    init: Init = Init()

    @property
    def visibility(self) -> Literal["full"]:
        """The encoder's; the decoder's is causal."""
        return "full"

    @model_validator(mode="after")
    def _divides(self) -> EncoderDecoder:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        return self


Model = Annotated[Single | EncoderDecoder, Field(discriminator="kind")]


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
    by: Literal["pooler", "dense", "plain"] = "pooler"
    bias: bool = True


class TokenHead(Spec):
    """One linear layer on every chosen token: tagging (outputs = labels), answer spans (outputs = 2)."""

    kind: Literal["token"] = "token"
    outputs: int = Field(2, gt=0)


class BoundaryHead(Spec):
    """Scores over the vocabulary from the two vectors around a span and the place in it."""

    kind: Literal["boundary"] = "boundary"
    places: int = Field(20, gt=0)
    """Places of a span that have a vector of their own; those behind share the last."""
    size: int = Field(200, gt=0)
    """Width of these vectors."""


Head = Annotated[VocabHead | PoolerHead | ClassHead | TokenHead | BoundaryHead, Field(discriminator="kind")]


class Network(Spec):
    """A body and its named heads: all that is needed to rebuild a model from a checkpoint."""

    model: Model = Single()
    heads: dict[str, Head] = {}


def class_heads(model: Model, name: str, outputs: int) -> dict[str, Head]:
    """The heads of one classification task in the system's own manner of pooling."""
    by = model.pool.by
    head: dict[str, Head] = {name: ClassHead(outputs=outputs, by=by, bias=by != "plain")}
    return {"pooler": PoolerHead(), **head} if by == "pooler" else head
