"""Labels written as text: a labelled task as a text-to-text one, and a written answer as a label again.

Paper: T5 (Raffel et al., 2020, 2.4 and appendix D): the model reads the task's name and its texts, and writes the label's name; numbers
are written to the nearest 0.2. A text that is none of the labels is a wrong answer, and one that is no number counts as 0.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ziggurat.atomic import write_json, write_text
from ziggurat.config import given
from ziggurat.data import sources
from ziggurat.data.leaks import Leak, LeakIndex
from ziggurat.data.rows import Columns
from ziggurat.data.shares import Split
from ziggurat.data.sources import Files, Source
from ziggurat.errors import check
from ziggurat.evaluate.written import asked
from ziggurat.nn import spec
from ziggurat.objectives.base import Objective
from ziggurat.objectives.labelled import Classify, Regress, number_of
from ziggurat.objectives.seq2seq import Seq2Seq
from ziggurat.text.tokenizer import Tokenizer
from ziggurat.types import Document

LONGEST = 16
"""Tokens of an answer that is written, or more where a label has more."""
UNKNOWN = ""
"""The label of a text that is no label."""


def can_be_written(objective: Objective) -> bool:
    """Whether the labels of an objective have a written form."""
    return isinstance(objective, (Classify, Regress))


def say(objective: Objective, value: Any) -> str:
    """The text of a label; raises `UserError` for one that is not listed, or is no number."""
    if isinstance(objective, Classify):
        known = dict(zip(map(str, objective.labels), objective.label_names()))
        check(
            str(value) in known,
            f"label {str(value)!r} is not in the label list {list(known)}",
            "mend the data or add the label to `objective.labels`",
        )
        return known[str(value)]
    number = number_of(value)
    check(math.isfinite(number), f"label {value!r} is not a finite number", "mend the data")
    return f"{round(number * 5) / 5:.1f}"


def understand(objective: Objective, text: str) -> Any:
    """The label (by its name) or number that a written answer means."""
    if isinstance(objective, Classify):
        known = {_plain(name): name for name in objective.label_names()}
        return known.get(_plain(text), UNKNOWN)
    try:
        value = float(text.replace(" ", ""))
    except ValueError:
        return 0.0
    return value if math.isfinite(value) else 0.0


def _plain(text: str) -> str:
    """What remains of a text after any tokenizer: no case, no spaces."""
    return "".join(text.casefold().split())


def prompted(prompt: str, name: str, texts: Mapping[str, str]) -> str:
    """What the model reads."""
    if not prompt:
        prompt = f"{name} text: {{text}}" + (" pair: {pair}" if "pair" in texts else "")
    return prompt.format(**texts)


def written_source(source: Source, objective: Objective, name: str, prompt: str, folder: Path) -> tuple[Files, int]:
    """The task's rows as pairs of texts, in files of `folder` that are made where they are missing or of other rows.

    Training rows that hold a test row are left out here, by the texts as they were: prompts and labels are alike in all rows. Also
    returns how many these were.
    """
    splits: tuple[Split, ...] = ("train", "test")
    state = [*(sources.fingerprint(source, split) for split in splits), given(objective), name, prompt]
    identity = hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    made = folder / "made.json"
    before = json.loads(made.read_text("utf-8")) if made.exists() else {}
    if before.get("identity") != identity:
        made.unlink(missing_ok=True)
        leaks: list[Leak] = []
        for split in splits:
            rows = (_row(d, objective, name, prompt) for d in original(source, split, leaks))
            write_text(folder / f"{split}.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        before = {"identity": identity, "leaks": len(leaks)}
        write_json(made, before)
    columns = Columns(text="text", pair="answer")
    found = Files(path=str(folder / "train.jsonl"), valid=0.0, test=str(folder / "test.jsonl"), columns=columns)
    return found, before["leaks"]


def original(source: Source, split: str, leaks: list[Leak] | None = None) -> Iterator[Document]:
    """The documents that were written down, as they were."""
    documents = sources.documents(source, split)  # type: ignore[arg-type]
    return documents if split == "test" else LeakIndex(sources.documents(source, "test")).clean(documents, leaks)


def _row(document: Document, objective: Objective, name: str, prompt: str) -> dict[str, str]:
    return {
        "text": prompted(prompt, name, document.texts),
        "answer": say(objective, document.fields["label"]),
        "row": document.id,
    }


def sized(way: Seq2Seq, objective: Objective, source: Source, tokenizer: Tokenizer, length: int, model: spec.Model) -> Seq2Seq:
    """`way` with room for the longest label (of numbers the longest in the training rows) and its end token. In one stack the source then
    has all the rest of `length`, and the label at most half of it, as by default; two stacks share nothing."""
    if isinstance(objective, Classify):
        labels = list(objective.label_names())
    else:
        labels = sorted({say(objective, d.fields["label"]) for d in sources.documents(source, "train")})
    longest = max(len(e.ids) for e in tokenizer.encode(labels)) + 1
    written = way.generate.model_copy(update={"most": max(way.generate.most, longest)})
    target = way.target if isinstance(model, spec.EncoderDecoder) else max(2, min(longest, length // 2))
    return way.model_copy(update={"target": target, "generate": written})


def writer(model: spec.Model, before: Mapping[str, Any], objective: Seq2Seq | None = None) -> Seq2Seq | None:
    """`objective` (by default one for short answers) in the way that a model trained by `before` is asked; None if it cannot write."""
    way = asked(model, before)
    if objective is None:
        objective = Seq2Seq.model_validate({"generate": {"most": LONGEST}})
    if "asks" in objective.model_fields_set:
        return objective
    if way is None:
        return None
    return objective.model_copy(update={field: getattr(way, field) for field in ("asks", "token", "segments", "ngram")})
