"""`ziggurat try`: one text, and what a checkpoint says about it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ziggurat.errors import UserError, check
from ziggurat.pipeline.model import load

WIDEST = 24


def try_checkpoint(checkpoint: Path | str, text: str, pair: str = "", choices: Sequence[str] = (), task: str = "") -> str:
    """Labels with their probabilities, the words with their tags, or a number from a fine-tuned checkpoint; of a masked LM
    the five most probable tokens for each mask; of a causal LM the text and its most probable continuation; of a model that writes texts, its text. `pair` is the second text of
    a pair: the context of a question. Of `choices` the scores, best first. `task` is one of several tasks.

    Raises:
        UserError: no checkpoint, or there is nothing in the text that it could answer.
    """
    model = load(checkpoint, task or None)
    given = (text, pair) if pair else text
    if choices:
        (scores,) = model.choice_scores([given], [choices])
        return "\n".join(f"{score:8.3f}  {choice}" for score, choice in sorted(zip(scores, choices), reverse=True))
    if model.task == "choice":
        raise UserError(f"{checkpoint} chooses among several texts, and there are none", "give it --choice ONE --choice OTHER")
    if model.task == "span":
        check(pair, "a question is asked about a context", "give it --pair CONTEXT")
        return model.predict([given])[0] or "no answer"
    if model.task == "tag":
        tagged = model.predict([text])[0]
        width = min(max((len(word) for word, _ in tagged), default=0), WIDEST)
        return "\n".join(f"{word:<{width}}  {label}" for word, label in tagged)
    if model.task:
        (answer,) = model.probabilities([given])
        if isinstance(answer, float):
            return f"{answer:.4f}"
        return "\n".join(f"{p:6.1%}  {label}" for label, p in sorted(answer.items(), key=lambda item: -item[1]))
    if "lm" not in model.network.heads:
        raise UserError(
            f"{checkpoint} has no head that could answer; its heads: {', '.join(model.network.heads) or 'none'}",
            "use a checkpoint of a text stage or of a finetune stage",
        )
    if model.writes:
        return model.generate([text])[0]
    if model.causal:
        return model.go_on(text)
    blocks = [
        "\n".join([f"mask {n}:", *(f"{p:6.1%}  {guess}" for guess, p in guesses)])
        for n, guesses in enumerate(model.fill(text), 1)
    ]
    return "\n".join(blocks)
