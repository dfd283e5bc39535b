"""StructBERT (Wang et al., 2020): BERT, trained also to put shuffled words back and to say how two segments follow each other.

The model is BERT's, and so are the Hub's classes. The head of sentence structure has three classes: it has no place in the Hub's
next-sentence head of two, and an export leaves it out and says so.
"""

from __future__ import annotations

from dataclasses import replace

from ziggurat.systems.bert import BERT

STRUCTBERT = replace(
    BERT,
    name="structbert",
    hub="bert",
    paper="https://arxiv.org/abs/1908.04577",
    objective={"kind": "joint", "parts": [{"kind": "mlm"}, {"kind": "word_order"}, {"kind": "sentence_structure"}]},
)
