"""How texts are written word by word: what a model must be shown to say the next word, and how a word is chosen."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import Field, model_validator

from ziggurat.config import Spec


@dataclass(frozen=True, slots=True)
class Continuation:
    """How a model says the next token.

    Chosen tokens are read one after the other in `stream`, each at the next position and a clock further. Without a `query` the last
    token read says the next one (GPT-2, T5, BART). With one, a row that nobody sees stands at the next position and says what
    belongs there: [MASK] in UniLM, [ATTN] in ERNIE-GEN, XLNet's query vector, ProphetNet's predicting stream.
    """

    stream: str = "text"
    query: int | None = None
    """Content of the asking row: a token, or a negative number of a learned vector."""
    sees_itself: bool = True
    """The asking row is a key for itself (not so in XLNet)."""
    segment: int | None = None
    """Segment number of new tokens and asking rows; None = that of the last token."""
    first: int | None = None
    """The token that every text begins with (BART: `<s>`)."""
    end: int | None = None
    """The token that ends a text; None = texts end when they are full."""
    banned: tuple[int, ...] = ()
    """Tokens that are never said."""


class Decoding(Spec):
    """How the next token is chosen: the most probable one, one drawn by chance, or the best of several beams."""

    most: int = Field(64, ge=1)
    """Tokens written at most, the end token included."""
    least: int = Field(0, ge=0)
    """Tokens written before the end token may be said."""
    beams: int = Field(1, ge=1)
    """Hypotheses kept at every step; 1 = one token after the other."""
    length_penalty: float = 1.0
    """Beams: the sum of log probabilities is divided by the length to this power; above 0 favours long texts."""
    early: bool = False
    """Beams: stop as soon as there are as many finished texts as beams; otherwise go on while the best running hypothesis, at its
    present length, would still be better than the worst finished text (the Hub's two rules)."""
    temperature: float = Field(0.0, ge=0)
    """0 = the most probable token; above, scores are divided by it and a token is drawn."""
    top_k: int = Field(0, ge=0)
    """Drawn from the so many most probable tokens only; 0 = from all."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Drawn from the fewest most probable tokens that have this probability together (Holtzman et al., 2020)."""
    no_repeat: int = Field(0, ge=0)
    """Token n-grams of this length are written once at most in each text; 0 = no such rule."""
    force_end: bool = False
    """A text of `most` tokens has the end token as its last (the Hub's BART)."""
    seed: int = Field(0, ge=0)
    """Of the draws. They also depend on what else is in the batch."""

    @model_validator(mode="after")
    def _one_way(self) -> Decoding:
        if self.beams > 1 and self.temperature > 0:
            raise ValueError("beams are not drawn by chance: leave out beams or temperature")
        if self.least >= self.most:
            raise ValueError(f"least is {self.least}, most is {self.most}")
        return self
