"""Phrases that are looked for in a source's own text."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ziggurat.config import Spec


class Collocations(Spec):
    """Phrases and names found by counting: runs of words that stand together far more often than their words alone would meet."""

    least: int = Field(10, ge=2)
    """How often a phrase must occur."""
    score: float = Field(0.5, gt=0, lt=1)
    """Least normalised pointwise mutual information (0 = words that meet by chance, 1 = words that never part) of a phrase, wherever it is
    cut in two."""
    longest: int = Field(8, ge=2)
    """Words of the longest phrase; in Chinese they are characters, unless `segmenter` says otherwise."""
    most: int = Field(100_000, ge=1)
    """Phrases kept, the most frequent ones."""
    sample: int = Field(40_000_000, ge=1)
    """Characters of text read, in whole documents from all over the source; a larger one is thinned out."""
    segmenter: Literal["characters", "jieba"] = "characters"
    """What words are in Chinese: each character, or jieba's words (extra `zh`)."""
