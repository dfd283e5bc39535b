"""Structure x objective: what trains, and why the rest does not. The survey's five wirings, each by a system that is made for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from ziggurat.nn import spec
from ziggurat.objectives import OBJECTIVES, Objective
from ziggurat.systems import model_of

STRUCTURES = {
    "encoder_ae": "bert",
    "decoder_ar": "gpt2",
    "prefix_lm": "unilm",
    "permuted_lm": "xlnet",
    "encoder_decoder": "bart",
    "adversaries": "electra",
}
"""Structure -> a system of it. The first four are one stack whose visibility differs; `adversaries` are two encoders."""
FILLED: Mapping[str, dict[str, Any]] = {
    "joint": {"parts": [{"kind": "mlm"}, {"kind": "sop"}]},
    "mixture": {"parts": [{"kind": "mlm"}, {"kind": "clm"}]},
    "unilm": {"codes": [0, 1, 0, 1, 0, 1]},
    "classify": {"labels": ["a", "b", "c"]},
    "tag": {"labels": ["O", "B", "I"]},
    "tasks": {"parts": {"one": {"kind": "classify", "labels": ["a", "b", "c"]}, "two": {"kind": "tag", "labels": ["O", "B"]}}},
}
"""What an objective needs besides its kind to be one."""


def objective_of(kind: str, structure: str) -> Objective:
    """An objective with the papers' numbers; a mixture of what suits the structure."""
    fields = dict(FILLED.get(kind, {}))
    if kind == "mixture" and structure == "encoder_decoder":
        fields = {"parts": [{"kind": "span_corruption"}, {"kind": "denoise"}]}
    return OBJECTIVES[kind].model_validate({"kind": kind, **fields})


def prototype(structure: str, size: str = "tiny") -> spec.Model:
    """The model that stands for a structure."""
    return model_of(f"{STRUCTURES[structure]}/{size}")


def refusal(structure: str, kind: str) -> str:
    """Why a structure is not trained with an objective, in one sentence; empty where it is."""
    try:
        objective = objective_of(kind, structure)
    except ValidationError as e:
        return str(e.errors()[0]["msg"])
    return next(iter(objective.misfits(objective.equipped(prototype(structure)))), "")


def matrix() -> tuple[list[str], list[list[str]], list[str]]:
    """(header, rows, notes): for each objective and structure `yes`, or `no` and the number of the note that says why."""
    reasons: dict[str, int] = {}
    rows = []
    for kind in OBJECTIVES:
        row = [kind]
        for structure in STRUCTURES:
            why = refusal(structure, kind)
            row.append(f"no ({reasons.setdefault(_general(why, kind), len(reasons) + 1)})" if why else "yes")
        rows.append(row)
    notes = [f"({number}) {why}" for why, number in reasons.items()]
    return ["objective", *(f"{s} ({STRUCTURES[s]})" for s in STRUCTURES)], rows, notes


def _general(why: str, kind: str) -> str:
    """A reason without the name of the objective (or the part of one) that it was given for."""
    return why.split(" ", 1)[1] if " is for models of " in why else why
