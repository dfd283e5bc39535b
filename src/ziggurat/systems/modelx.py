"""Model X, the survey's model that nobody had trained: RoBERTa's training on more text and in larger sizes, spans whose tokens are told
independently of each other, and sentence order (section 6 of the survey; the open choices are made in docs/decisions.md).

One encoder with two segments and narrow embeddings; spans are those of SpanBERT, decided as one (80/10/10 once a span); the swapped pairs come from the same
document, as in ALBERT. Its parts are BERT's, so the Hub's BERT classes hold it as long as the embeddings are as wide as the model.
The ladder that leads to it, one switch a rung, lies in recipes/modelx.
"""

from __future__ import annotations

from ziggurat.systems.base import System
from ziggurat.systems.bert import BERT
from ziggurat.systems.encoder import SIZES

MODELX = System(
    name="modelx",
    hub="bert",
    paper="https://arxiv.org/abs/2003.08271",
    model=BERT.model,
    sizes={**SIZES, "xlarge": {"layers": 24, "width": 2048, "heads": 32, "mlp": 8192}},
    objective={"kind": "joint", "parts": [{"kind": "sop"}, {"kind": "mlm", "unit": "span"}]},
    template="bert",
    knobs=BERT.knobs,
    names=BERT.names,
    heads=BERT.heads,
    classes=BERT.classes,
    fixed=BERT.fixed,
    head_fixed=BERT.head_fixed,
    pad=0,
)
