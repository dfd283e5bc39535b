"""`ziggurat try`: one text, and what a checkpoint says about it."""

from __future__ import annotations

from pathlib import Path

from ziggurat.errors import UserError
from ziggurat.pipeline.model import load

WIDEST = 24


def try_checkpoint(checkpoint: Path | str, text: str) -> str:
    """Labels with their probabilities, the words with their tags, or a number from a fine-tuned checkpoint; of a masked LM
    the five most probable tokens for each mask; of a causal LM the text and its most probable continuation; of a model that writes texts, its text.

    Raises:
        UserError: no checkpoint, or there is nothing in the text that it could answer.
    """
    model = load(checkpoint)
    if model.task == "tag":
        tagged = model.predict([text])[0]
        width = min(max((len(word) for word, _ in tagged), default=0), WIDEST)
        return "\n".join(f"{word:<{width}}  {label}" for word, label in tagged)
    if model.task:
        (answer,) = model.probabilities([text])
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
