"""Every knob of every part of a model, on one page. The modules built from these end in Layer, Stack, Model or Head."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from ziggurat.config import Spec


class LayerNorm(Spec):
    """Layer normalisation (Ba et al., 2016)."""

    kind: Literal["layer_norm"] = "layer_norm"
    eps: float = Field(1e-12, gt=0)
    bias: bool = True


class RMSNorm(Spec):
    """Root-mean-square normalisation without a mean and without a bias (Zhang & Sennrich, 2019; T5)."""

    kind: Literal["rms_norm"] = "rms_norm"
    eps: float = Field(1e-6, gt=0)


Norm = Annotated[LayerNorm | RMSNorm, Field(discriminator="kind")]


class Learned(Spec):
    """Learned absolute positions, added to the embeddings."""

    kind: Literal["learned"] = "learned"
    length: int = Field(512, gt=0)
    """Longest document in tokens."""
    offset: int = Field(0, ge=0)
    """Rows of the table before the first token's (RoBERTa: 2, because its numbering starts at the pad id + 1)."""


class Sinusoidal(Spec):
    """Fixed absolute positions: sines in the first half of the vector, cosines in the second (Vaswani et al., 2017, 3.5)."""

    offset: ClassVar[int] = 0
    kind: Literal["sinusoidal"] = "sinusoidal"
    length: int = Field(512, gt=0)
    """Longest document in tokens; the waves go on, but the model has not seen them."""


class Unplaced(Spec):
    """No absolute positions: attention knows distances instead (T5, XLNet, NEZHA, ModernBERT)."""

    offset: ClassVar[int] = 0
    kind: Literal["none"] = "none"
    length: int = Field(512, gt=0)
    """Longest document in tokens that the model is meant for; no weight depends on it."""


Absolute = Annotated[Learned | Sinusoidal | Unplaced, Field(discriminator="kind")]


class Rotary(Spec):
    """Queries and keys are turned by an angle that grows with the position (Su et al., 2021); halves of a head make the pairs."""

    kind: Literal["rotary"] = "rotary"
    base: float = Field(10_000.0, gt=1)


class Relative(Spec):
    """XLNet's and Transformer-XL's: sines of the signed distance through a matrix, and same or other segment, against the query
    plus a learned vector each (Yang et al., 2019, 2.5 and appendix A.2)."""

    kind: Literal["relative"] = "relative"
    segments: bool = True
    """A learned vector a head for keys of the same segment, and one for the others."""


class Functional(Spec):
    """NEZHA's: fixed sines of the clipped distance, added to keys and to values (Wei et al., 2019, 2.1)."""

    kind: Literal["functional"] = "functional"
    clip: int = Field(64, gt=0)
    """Distances beyond this are taken as this."""


class ContentBuckets(Spec):
    """ProphetNet's: the query's input vector says, for each head, how much each bucket of distance to the past is worth."""

    kind: Literal["content_buckets"] = "content_buckets"
    count: int = Field(32, gt=1)
    longest: int = Field(128, gt=1)
    """Distances from here on share the last bucket."""
    order: Literal["release", "hub"] = "release"
    """Whose numbers a predicting row takes: its own, or those of other rows and heads, as the Hub's class does when it reads a
    whole text (`nn/positions.HubBucketLayer`)."""


Distances = Annotated[Rotary | Relative | Functional | ContentBuckets, Field(discriminator="kind")]


class Buckets(Spec):
    """T5's relative bias: one number a head and bucket of distance, added to the scores of every layer (Raffel et al., 2020, 2.1).

    Where a stack is causal all buckets are for the past, elsewhere half of them for each side.
    """

    count: int = Field(32, gt=3)
    longest: int = Field(128, gt=1)
    """Distances from here on share the last bucket."""


class Embed(Spec):
    """Token, position and segment embeddings, summed."""

    width: int | None = Field(None, gt=0)
    """Width of the tables where it is not the model's: a matrix leads from one to the other (ALBERT, ELECTRA)."""
    widen: Literal["needed", "always"] = "needed"
    """`always`: that matrix is there even where both are of one width (ALBERT)."""
    scale: Literal["one", "root"] = "one"
    """`root`: token vectors are multiplied by the root of their width before the sum (Vaswani et al., 2017, 3.4; MASS)."""
    positions: Absolute = Learned()
    segments: int = Field(0, ge=0)
    """Rows of the segment table; 0 = no table."""
    tasks: int = Field(0, ge=0)
    """Rows of a table of task numbers (ERNIE 2.0); 0 = no table. A token's segment number is task * segments + segment."""
    extra: int = Field(0, ge=0)
    """Learned input vectors that are no vocabulary item (XLNet's query vector, ProphetNet's n-gram vectors): content id -1 is
    the first, -2 the second."""
    norm: Norm | None = LayerNorm()
    """Norm on the sum; none in GPT-2."""


class Attention(Spec):
    """Multi-head self-attention."""

    bias: bool = True
    head_width: int | None = Field(None, gt=0)
    """Width of one head where it is not width / heads (T5)."""
    scale: Literal["root", "one"] = "root"
    """Scores are divided by the root of a head's width, or left as they are (T5)."""
    distances: Distances | None = None
    """How attention knows where a key stands, besides the embeddings."""
    window: int | None = Field(None, gt=0)
    """Keys at most this many positions away are seen; null = all (GPT-3's and ModernBERT's local layers)."""


class Mlp(Spec):
    """The position-wise feed-forward layer."""

    activation: Literal["gelu", "gelu_tanh", "relu", "silu"] = "gelu"
    bias: bool = True
    gated: bool = False
    """The activated half multiplies a second, linear one (Shazeer, 2020; T5 1.1, ModernBERT)."""


class Block(Spec):
    """One Transformer layer."""

    attention: Attention = Attention()
    mlp: Mlp = Mlp()
    norm: Norm = LayerNorm()
    norm_at: Literal["post", "pre"] = "post"
    """`post`: norm after the residual sum (BERT); `pre`: norm before each part (GPT-2)."""


class Share(Spec):
    """Layers that are the same weights (Lan et al., 2020): the layers fall into `groups` of neighbours, each with its own."""

    groups: int = Field(1, gt=0)
    inner: int = Field(1, gt=0)
    """Blocks that one layer of a group passes through."""


class Pool(Spec):
    """How one vector stands for a whole document."""

    at: Literal["first", "last"] = "first"
    """The summary token: the document's first (BERT) or last (GPT-2)."""
    by: Literal["pooler", "dense", "plain", "transform"] = "pooler"
    """`pooler`: one dense layer and tanh shared by all document heads (BERT); `dense`: each head brings its own
    (RoBERTa); `plain`: the vector as it is (GPT-2); `transform`: every head, those on tokens too, brings the dense layer, activation and
    norm of a vocabulary head (ModernBERT)."""
    activation: Literal["tanh", "gelu"] = "tanh"
    """Of the `dense` layer (ELECTRA: gelu)."""


class VocabProjection(Spec):
    """How hidden vectors become vocabulary scores."""

    transform: bool = True
    """A dense layer, activation and norm before the projection (BERT, RoBERTa)."""
    bias: bool = True
    """One bias a vocabulary item."""
    activation: Literal["gelu", "gelu_tanh", "relu", "silu"] = "gelu"
    dense_bias: bool = True
    """The dense layer of the transform has a bias (all but ModernBERT's)."""
    tied: bool = True
    """The projection is the table of token embeddings; else the head has its own (T5 1.1)."""
    scale: Literal["one", "width"] = "one"
    """`width`: vectors are multiplied by width ** -0.5 before the projection (T5 1.0)."""


class Init(Spec):
    """How fresh weights are drawn."""

    std: float = Field(0.02, gt=0)
    matrices: Literal["std", "inputs"] = "std"
    """`inputs`: matrices have a deviation of inputs ** -0.5, and queries less by the root of a head's width where scores are not
    scaled (T5); `std` is then for the tables alone."""
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


def class_heads(model: Model, name: str, outputs: int) -> dict[str, Head]:
    """The heads of one classification task in the system's own manner of pooling."""
    by = model.pool.by
    head: dict[str, Head] = {name: ClassHead(outputs=outputs, by=by, bias=by != "plain")}
    return {"pooler": PoolerHead(), **head} if by == "pooler" else head
