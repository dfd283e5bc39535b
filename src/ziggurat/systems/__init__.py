"""Named systems: `SYSTEMS` is the registry, `model_of("roberta/tiny", ...)` the model a recipe asks for."""

from __future__ import annotations

from collections.abc import Mapping

from ziggurat.errors import check
from ziggurat.nn.spec import Model
from ziggurat.systems.base import System, closest
from ziggurat.systems.bert import BERT
from ziggurat.systems.ernie_gen import ERNIE_GEN
from ziggurat.systems.gpt2 import GPT2
from ziggurat.systems.prophetnet import PROPHETNET, PROPHETNET_LM
from ziggurat.systems.roberta import ROBERTA
from ziggurat.systems.unilm import UNILM
from ziggurat.systems.unilm2 import UNILM2

SYSTEMS: dict[str, System] = {
    system.name: system for system in (BERT, ROBERTA, GPT2, PROPHETNET, PROPHETNET_LM, UNILM, UNILM2, ERNIE_GEN)
}


def split_name(name: str) -> tuple[System, str]:
    """`"bert/base"` -> (the system, "base"); raises `UserError` that names the nearest system or size."""
    system, _, size = name.partition("/")
    if system not in SYSTEMS:
        raise closest(system, SYSTEMS, "system")
    found = SYSTEMS[system]
    check(size, f"system '{name}' lacks a size", f"write for example {name}/tiny; sizes: {', '.join(found.sizes)}")
    if size not in found.sizes:
        raise closest(size, found.sizes, f"size of {system}")
    return found, size


def model_of(name: str, dials: Mapping[str, int] | None = None, vocab: int | None = None) -> Model:
    """The body spec of `"<system>/<size>"` with `dials` (`systems.base.DIALS`) over the size and `vocab` token rows
    (default: the published vocabulary)."""
    system, size = split_name(name)
    return system.sized(size, dials, vocab)
