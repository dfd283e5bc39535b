"""UniLM (Dong et al., 2019): BERT, trained to fill masks under four visibilities, so that it also writes.

The model is BERT's with six segments, one or two for each visibility, and the vocabulary of the cased release. The release keeps
BERT's names (of its early PyTorch port), so an export is read by the Hub's BERT classes; those see both ways, and the other
visibilities must be given to them as masks. BERT's own files have two segments: a model that is to go on from one has as many.
"""

from __future__ import annotations

from dataclasses import replace

from ziggurat.systems.bert import BERT

UNILM = replace(
    BERT,
    name="unilm",
    hub="bert",
    paper="https://arxiv.org/abs/1905.03197",
    model=BERT.model.model_copy(update={"vocab": 28996, "embed": BERT.model.embed.model_copy(update={"segments": 6})}),
    objective={"kind": "unilm"},
)
