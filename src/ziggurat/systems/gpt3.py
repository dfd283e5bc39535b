"""GPT-3 (Brown et al., 2020): GPT-2 with a longer context, in which every other layer sees a band of the past only.

The paper does not publish the band; 256 tokens (with the token itself) are what GPT-Neo, its public likeness, takes. Two entries of its table of sizes cannot
both be right and are resolved here: 13B has a width of 5,120 (40 heads of 128; printed 5,140), 1.3B has 16 heads of 128 (printed 24). No class of the Hub
computes the banded form; without bands it is `gpt2` with these dimensions.
"""

from __future__ import annotations

from dataclasses import replace

from ziggurat.checkpoint.names import NameMap
from ziggurat.nn.spec import Attention, Learned, Single
from ziggurat.systems.base import sizes
from ziggurat.systems.gpt2 import GPT2

BAND = 256

assert isinstance(GPT2.model, Single)
GPT3 = replace(
    GPT2,
    name="gpt3",
    paper="https://arxiv.org/abs/2005.14165",
    model=GPT2.model.model_copy(
        update={
            "embed": GPT2.model.embed.model_copy(update={"positions": Learned(length=2048)}),
            "pattern": (Attention(), Attention(window=BAND - 1)),
        }
    ),
    sizes={
        **sizes(tiny=(2, 128), mini=(4, 256), small=(12, 768), medium=(24, 1024)),
        "large": {"layers": 24, "width": 1536, "heads": 16, "mlp": 6144},
        "xl": {"layers": 24, "width": 2048, "heads": 16, "mlp": 8192},
        "2.7b": {"layers": 32, "width": 2560, "heads": 32, "mlp": 10240},
        "6.7b": {"layers": 32, "width": 4096, "heads": 32, "mlp": 16384},
        "13b": {"layers": 40, "width": 5120, "heads": 40, "mlp": 20480},
        "175b": {"layers": 96, "width": 12288, "heads": 96, "mlp": 49152},
    },
    knobs=(),
    names=NameMap(()),
    heads={},
    classes={},
)
