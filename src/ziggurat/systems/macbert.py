"""MacBERT (Cui et al., 2020): BERT, trained to correct words that were replaced by similar ones, and on sentence order.

The model is BERT's with the vocabulary of the Chinese release, and so are the Hub's classes; an export leaves the sentence-order
head out, for the Hub's next-sentence head asks something else. The objective's table of similar words (`mac.table`)
comes from the corpus, unless the recipe brings one.
"""

from __future__ import annotations

from dataclasses import replace

from ziggurat.systems.bert import BERT

MACBERT = replace(
    BERT,
    name="macbert",
    hub="bert",
    paper="https://arxiv.org/abs/2004.13922",
    model=BERT.model.model_copy(update={"vocab": 21128}),
    objective={"kind": "joint", "parts": [{"kind": "mac"}, {"kind": "sop"}]},
)
