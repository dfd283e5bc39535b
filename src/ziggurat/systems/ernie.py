"""ERNIE of Baidu, 1.0 (Sun et al., 2019) and 2.0 (Sun et al., AAAI 2020): BERT's encoder, whose words, phrases and entities are hidden whole.

1.0 hides what a finder or the data marks as phrases (`mlm` with `unit: phrase`; a source says where they come from). 2.0 adds a table of task
numbers to the embeddings; its seven tasks come one after the other, old ones kept (stages with a `mixture`). A token's segment number is here
task * segments + segment. The 1.0 files have ReLU where their config says so.
"""

from __future__ import annotations

from dataclasses import replace

from ziggurat.nn.spec import Single
from ziggurat.systems.base import System, knob
from ziggurat.systems.bert import BERT
from ziggurat.systems.encoder import FIXED, TIED, encoder_classes, encoder_heads, encoder_knobs, encoder_names

KNOBS = (knob("vocab_size", 30522, "vocab"), *encoder_knobs("block.mlp.activation", "project.activation"))

TASKS = (("ernie.embeddings.task_type_embeddings.weight", "model.embed.task.weight"),)

assert isinstance(BERT.model, Single)
ERNIE = System(
    name="ernie",
    paper="https://arxiv.org/abs/1904.09223",
    model=BERT.model.model_copy(update={"vocab": 18000}),
    sizes=BERT.sizes,
    objective={"kind": "joint", "parts": [{"kind": "mlm", "unit": "word"}, {"kind": "nsp"}]},
    template="bert",
    knobs=KNOBS,
    names=encoder_names("ernie"),
    heads=encoder_heads("ernie"),
    classes=encoder_classes("Ernie", "ErnieForCausalLM"),
    fixed={**FIXED, "use_task_id": False},
    head_fixed=TIED,
    pad=0,
)
ERNIE2 = replace(
    ERNIE,
    name="ernie2",
    hub="ernie",
    paper="https://arxiv.org/abs/1907.12412",
    model=BERT.model.model_copy(update={"vocab": 30522, "embed": BERT.model.embed.model_copy(update={"tasks": 3})}),
    knobs=(*KNOBS, knob("task_type_vocab_size", 3, "embed.tasks")),
    names=encoder_names("ernie") + TASKS,
    fixed={**FIXED, "use_task_id": True},
    when={"use_task_id": True},
)
