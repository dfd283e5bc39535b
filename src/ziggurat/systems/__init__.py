"""Named systems: `SYSTEMS` is the registry, `model_of("roberta/tiny", ...)` the model a recipe asks for."""

from __future__ import annotations

from collections.abc import Mapping

from ziggurat.errors import check
from ziggurat.named import named
from ziggurat.nn.spec import Model
from ziggurat.systems.albert import ALBERT
from ziggurat.systems.bart import BART
from ziggurat.systems.base import System, closest
from ziggurat.systems.bert import BERT
from ziggurat.systems.electra import ELECTRA
from ziggurat.systems.ernie import ERNIE, ERNIE2
from ziggurat.systems.ernie_gen import ERNIE_GEN
from ziggurat.systems.gpt1 import GPT
from ziggurat.systems.gpt2 import GPT2
from ziggurat.systems.gpt3 import GPT3
from ziggurat.systems.macbert import MACBERT
from ziggurat.systems.mass import MASS
from ziggurat.systems.modelx import MODELX
from ziggurat.systems.modernbert import MODERNBERT
from ziggurat.systems.nezha import NEZHA
from ziggurat.systems.prophetnet import PROPHETNET, PROPHETNET_LM
from ziggurat.systems.roberta import ROBERTA
from ziggurat.systems.structbert import STRUCTBERT
from ziggurat.systems.t5 import T5, T5_1_1
from ziggurat.systems.unilm import UNILM
from ziggurat.systems.unilm2 import UNILM2
from ziggurat.systems.xlnet import XLNET

SYSTEMS: dict[str, System] = {
    system.name: system
    for system in (
        BERT, ROBERTA, ALBERT, ELECTRA, STRUCTBERT, MACBERT, NEZHA, ERNIE, ERNIE2, MODERNBERT, MODELX,
        GPT, GPT2, GPT3,
        UNILM, UNILM2, ERNIE_GEN, XLNET,
        T5, T5_1_1, BART, MASS, PROPHETNET, PROPHETNET_LM,
    )
}  # fmt: skip


def find(name: str) -> System | None:
    """The system of this name, or the one that an import path `package.module:NAME` leads to; None if there is none."""
    found = SYSTEMS.get(name) or named(name)
    return found if isinstance(found, System) else None


def split_name(name: str) -> tuple[System, str]:
    """`"bert/base"` -> (the system, "base"); raises `UserError` that names the nearest system or size."""
    system, _, size = name.partition("/")
    found = find(system)
    if found is None:
        raise closest(system, SYSTEMS, "system")
    check(size, f"system '{name}' lacks a size", f"write for example {name}/tiny; sizes: {', '.join(found.sizes)}")
    if size not in found.sizes:
        raise closest(size, found.sizes, f"size of {system}")
    return found, size


def model_of(name: str, dials: Mapping[str, int] | None = None, vocab: int | None = None) -> Model:
    """The body spec of `"<system>/<size>"` with `dials` (`systems.base.DIALS`) over the size and `vocab` token rows
    (default: the published vocabulary)."""
    system, size = split_name(name)
    return system.sized(size, dials, vocab)
