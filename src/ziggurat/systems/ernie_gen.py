"""ERNIE-GEN (Xiao et al., 2020): BERT, trained to write words and spans by rows that never see them.

The model is BERT's with four segments, of which the release uses the last for the target. The rows that ask hold the token
`[ATTN]`, an ordinary entry of the vocabulary: a tokenizer must have it (the objective's `token`). The release is for another
framework; an export is read by the Hub's BERT classes, which see both ways: the flows must be given to them as masks.
"""

from __future__ import annotations

from dataclasses import replace

from ziggurat.systems.bert import BERT

ERNIE_GEN = replace(
    BERT,
    name="ernie_gen",
    hub="bert",
    paper="https://arxiv.org/abs/2001.11314",
    model=BERT.model.model_copy(update={"embed": BERT.model.embed.model_copy(update={"segments": 4})}),
    objective={"kind": "ernie_gen", "segment": 3},
)
