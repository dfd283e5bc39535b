"""The parts of a model as specs: norms, positions, embeddings, attention, the feed-forward layer, the block, pooling, projection, first weights.

`nn/spec.py` puts them together; users write and read them under its name.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

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

    at: Literal["first", "last", "mean"] = "first"
    """The summary token: the document's first (BERT) or last (GPT-2); or the mean of all its tokens (a variant of ModernBERT)."""
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
