"""What can be wrong with a stage's wish for new tokens."""

from __future__ import annotations

from collections.abc import Iterator

from ziggurat.train.stage import Stage
from ziggurat.tree import nearest


def problems(stage: Stage) -> Iterator[tuple[str, str]]:
    """(field, message) of a resolved stage."""
    wanted = stage.vocabulary
    if wanted is None:
        return
    if stage.stage == "finetune":
        yield "vocabulary", "new tokens are learned from text: it belongs in a pretrain, dapt or tapt stage before this one"
    if stage.init == "scratch":
        yield (
            "vocabulary",
            "extends the tokenizer of a checkpoint, and this stage starts from scratch: give `tokenizer` a larger `vocab`",
        )
    if wanted.source is None and len(stage.data) > 1:
        example = next(iter(stage.data))
        yield "vocabulary", f"say which source the tokens are mined from, as in vocabulary: {{source: {example}, ...}}"
    if wanted.source is not None and wanted.source not in stage.data:
        yield "vocabulary", f"'{wanted.source}' is no source of this stage; {nearest(wanted.source, stage.data)}"
