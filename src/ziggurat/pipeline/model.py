"""A checkpoint, opened for use: fill masks, continue a text, choose, or answer what it was fine-tuned for."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import ValidationError

from ziggurat.data import cut
from ziggurat.data.rows import join_words, joined
from ziggurat.data.runs import bounds_of
from ziggurat.data.writing import covered
from ziggurat.errors import UserError, check
from ziggurat.evaluate import answers
from ziggurat.evaluate.generate import generate
from ziggurat.evaluate.heldout import to_device
from ziggurat.evaluate.likelihood import Likelihood, scores
from ziggurat.evaluate.written import asked, write
from ziggurat.nn import halves
from ziggurat.nn.network import NetworkModel
from ziggurat.nn.spec import Adversaries, ClassHead, TokenHead
from ziggurat.objectives import labelled
from ziggurat.objectives.base import context_of
from ziggurat.objectives.decoding import Continuation, Decoding
from ziggurat.objectives.multiple_choice import MultipleChoice
from ziggurat.objectives.question_answering import QuestionAnswering
from ziggurat.pipeline.opened import Opened, open_checkpoint
from ziggurat.systems import SYSTEMS
from ziggurat.text.tokenizer import Encoded, Tokenizer
from ziggurat.types import CAUSAL, Batch, Part, Stream, Target, Tokens, text_target

AT_ONCE = 32
"""Texts in one forward pass."""
HAN = "\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
WORD = re.compile(f"[{HAN}]|[^\\s{HAN}]+")
MASKS = re.compile(r"\[MASK\]|<mask>")
"""How people write a mask, whatever the tokenizer calls it."""

Text = str | tuple[str, str]
"""A text, or a pair of texts."""


class Guess(NamedTuple):
    """One candidate."""

    text: str
    probability: float


class Model:
    """A network and its tokenizer. All texts are cut to the model's longest input."""

    def __init__(self, opened: Opened):
        check(
            opened.tokenizer is not None,
            f"{opened.folder} has no tokenizer: texts cannot be given to it",
            "put the tokenizer.json it was trained with into the folder",
        )
        assert opened.tokenizer is not None
        self.folder = opened.folder
        self.network = opened.build()
        self.tokenizer: Tokenizer = opened.tokenizer
        self.labels = opened.labels
        system = SYSTEMS[opened.system].objective if opened.system in SYSTEMS else {}
        self.objective: Mapping[str, Any] = opened.lineage[-1].get("objective", system) if opened.lineage else system
        """What it was last trained with, as a recipe would write it; an imported model's is its system's."""
        self.causal = opened.network.model.visibility == "causal" or self.objective.get("kind") == "clm"
        """Reads from left to right."""
        model = opened.network.model
        self.context = context_of(model, self.tokenizer, model.embed.positions.length)

    @cached_property
    def filler(self) -> NetworkModel:
        """What fills masks: the network, or of a generator and a discriminator the former."""
        if not isinstance(self.network.spec.model, Adversaries):
            return self.network
        half = halves.generator(self.network.spec, self.network.state_dict())
        network = NetworkModel(half.network)
        network.load_state_dict(half.tensors)
        return network.eval()

    @property
    def task(self) -> str:
        """Its head: `classify`, `regress`, `tag`, `span` (question answering) or `choice`; empty for a language model."""
        return next((head for head in ("classify", "regress", "tag", "span", "choice") if head in self.network.heads), "")

    def fill(self, text: str, top: int = 5) -> list[list[Guess]]:
        """For each mask in the text (`[MASK]` or `<mask>`) the `top` most probable tokens.

        Raises:
            UserError: there is no mask in the text, or the model cannot fill one.
        """
        vocab = self.tokenizer.vocab
        fills = "lm" in self.network.heads and vocab.mask is not None and not self.causal and self.context.streams == ("text",)
        check(fills, f"{self.folder} is no masked language model: it cannot fill masks", "use a checkpoint of a masked-LM stage")
        mask = self.tokenizer.roles["mask_token"]
        batch = cut.single(self._tokens([MASKS.sub(lambda _: mask, text)]), self.context)
        at = np.flatnonzero(batch.streams["text"].content == vocab.mask)
        check(
            len(at), "there is no mask to fill in the text (or it stands too far behind)", f"write {mask} where a word is missing"
        )
        found = self._scores(batch, "lm", text_target(at, np.zeros(len(at), np.int64))).softmax(-1).topk(min(top, vocab.size))
        return [
            [Guess(self.tokenizer.decode([i], special=True), float(p)) for i, p in zip(ids, values)]
            for ids, values in zip(found.indices.tolist(), found.values.tolist())
        ]

    def go_on(self, text: str, tokens: int = 40, *, temperature: float = 0.0, seed: int = 0) -> str:
        """The text and its continuation by up to `tokens` tokens: the most probable ones, or drawn at a `temperature` above 0.

        Raises:
            UserError: the model does not read from left to right.
        """
        reads = "lm" in self.network.heads and self.causal
        check(reads, f"{self.folder} is no causal language model: it cannot continue a text", "use a checkpoint of a `clm` stage")
        vocab, longest = self.tokenizer.vocab, self.context.length
        ids = [*self.context.layout.first, *self.tokenizer.encode([text])[0].ids.tolist()]
        ids = ids or [vocab.end if vocab.end is not None else vocab.pad]
        before = len(ids)
        draws = torch.Generator().manual_seed(seed)
        way = Continuation(end=vocab.end, banned=tuple(i for i in vocab.special if i != vocab.end))
        while (wanted := tokens - len(ids) + before) > 0:
            window = np.array(ids[-longest:], np.int32)
            n = len(window)
            stream = Stream(window, np.array([0, n]), np.arange(n, dtype=np.int32), np.zeros(n, np.int32), CAUSAL)
            # where the text has outgrown the positions, the oldest token is left out at every step
            how = Decoding(most=min(wanted, longest - n + 1), temperature=temperature)
            (new,) = generate(self.network, Batch({"text": stream}, {}, np.zeros(1, np.uint64)), way, how, draws)
            ids += new
            if len(new) < how.most:
                break
        made = self.tokenizer.decode(ids)  # whole, for a piece of a word says less than the word
        said = self.tokenizer.decode(ids[:before])
        return text + made.removeprefix(said) if made.startswith(said) else made

    @property
    def writes(self) -> bool:
        """Reads one text and writes another: an encoder-decoder, or a model fine-tuned with `seq2seq`."""
        return "lm" in self.network.heads and (
            self.context.structure == "encoder_decoder" or self.objective.get("kind") == "seq2seq"
        )

    def generate(self, texts: Sequence[str], **how: Any) -> list[str]:
        """The text that the model writes after each of the texts; `how` are fields of `Decoding`: `most` tokens, `beams`, `temperature`,
        `top_p` ... By default those of the fine-tuning.

        A model that was not fine-tuned with `seq2seq` is asked as in its pre-training: BART writes the clean text, T5 what stood
        in place of its sentinels.

        Raises:
            UserError: the model cannot write, or a field of `how` is wrong.
        """
        if isinstance(texts, str):
            raise UserError("generate takes a list of texts, not one text", "write generate([text])")
        found = asked(self.network.spec.model, self.objective) if "lm" in self.network.heads else None
        if found is None:
            raise UserError(
                f"{self.folder} does not write texts",
                "use an encoder-decoder, a causal model, or a model fine-tuned with the objective seq2seq",
            )
        try:
            decoding = Decoding.model_validate({**found.generate.model_dump(), **how})
        except ValidationError as e:
            place = ".".join(map(str, e.errors()[0]["loc"]))
            raise UserError(f"generate: {place}: {e.errors()[0]['msg']}", f"fields: {', '.join(Decoding.model_fields)}") from None
        found.needs(self.context)
        return write(self.network, found, self._tokens(texts), self.tokenizer, self.context, decoding)

    def predict(self, texts: Sequence[Text | Sequence[str]]) -> list[Any]:
        """The answers of a fine-tuned model, one a text: a label, a number, for tagging a list of (word, label), to a question
        (question, context) the words of the context, empty where there is no answer.

        A pair of texts is a tuple. What is to be tagged may be a list of words; of a text the words are found at spaces,
        and each Han character is one. A word behind the length that the model reads, or that the tokenizer drops, has the label `O`,
        or none where no label is called so. Of several choices `choose` takes one.

        Raises:
            UserError: the model was not fine-tuned.
        """
        if isinstance(texts, str):
            raise UserError("predict takes a list of texts, not one text", "write predict([text])")
        if self.task == "tag":
            return [self._tag(text) for text in texts]
        if self.task == "span":
            return self._answer(texts)  # type: ignore[arg-type]
        found = self.probabilities(texts)  # type: ignore[arg-type]
        return [max(a, key=a.__getitem__) if isinstance(a, dict) else a for a in found]

    def probabilities(self, texts: Sequence[Text]) -> list[Any]:
        """Of a classifier {label: probability} for each text, of a regression the number."""
        check(
            self.task in ("classify", "regress"),
            f"{self.folder} has no head that answers about a whole text; its heads: {', '.join(self.network.heads) or 'none'}",
            "use the checkpoint of a finetune stage (classify or regress)",
        )
        found: list[Any] = []
        for start in range(0, len(texts), AT_ONCE):
            part = texts[start : start + AT_ONCE]
            tokens = self._tokens(part)
            nothing = np.zeros(len(part), np.int64)
            target = text_target(np.arange(len(part)), nothing, at="document", stream=self.context.streams[-1])
            made = self._scores(labelled.texts(tokens, self.context), self.task, target)
            if self.task == "regress":
                found += made[:, 0].tolist()
            else:
                found += [dict(zip(self._names(), row)) for row in made.softmax(-1).tolist()]
        return found

    def choose(self, questions: Sequence[Text], choices: Sequence[Sequence[str]], how: Likelihood | None = None) -> list[str]:
        """The best choice for each question; see `choice_scores`."""
        scored = self.choice_scores(questions, choices, how)
        return [options[int(np.argmax(row))] for options, row in zip(choices, scored, strict=True)]

    def choice_scores(
        self, questions: Sequence[Text], choices: Sequence[Sequence[str]], how: Likelihood | None = None
    ) -> list[list[float]]:
        """The scores of each question's choices: log-odds of a model fine-tuned with `multiple_choice`; of one that writes texts how
        probable the choice is after the question (`how`; a question is then one text, which may hold solved ones: `Prompt`).

        Raises:
            UserError: the model can do neither.
        """
        check(len(questions) == len(choices), f"{len(questions)} questions, but choices for {len(choices)}")
        if "choice" in self.network.heads:
            check(all(len(options) for options in choices), "a question has no choices", "give it two or more")
            return answers.choices(self.network, MultipleChoice(), self._choice_tokens(questions, choices), self.context)
        prompts = [" ".join(q) if isinstance(q, (tuple, list)) else q for q in questions]
        return scores(self.network, self.objective, self.tokenizer, self.context, prompts, choices, how)

    def _choice_tokens(self, questions: Sequence[Text], choices: Sequence[Sequence[str]]) -> Tokens:
        tokens = self._tokens(questions)
        before = [q[1] if isinstance(q, (tuple, list)) else "" for q in questions]
        flat = [joined(b, text) for b, options in zip(before, choices, strict=True) for text in options]
        encoded = self.tokenizer.encode(flat)
        empty = [text for text, e in zip(flat, encoded, strict=True) if not len(e)]
        check(not empty, f"the choice {empty and empty[0]!r} has no token", "write something visible in its place")
        sizes, counts = np.array([len(e) for e in encoded]), np.array([len(options) for options in choices])
        bounds = bounds_of(sizes)
        first = bounds_of(counts)
        begin = bounds[:-1] - np.repeat(bounds[first[:-1]], counts)
        ids, words, sentences = (np.concatenate([getattr(e, what) for e in encoded]) for what in ("ids", "words", "sentences"))
        marks = np.stack([begin, begin + sizes, 0 * sizes], 1)
        part = Part(ids, bounds[first], words, sentences, marks, first, ("choices",))
        return replace(tokens, parts={**tokens.parts, "choices": part})

    def _answer(self, texts: Sequence[tuple[str, str]]) -> list[str]:
        paired = all(isinstance(text, (tuple, list)) and len(text) == 2 for text in texts)
        check(paired, "a question is asked about a context", "give pairs (question, context)")
        fields = self.objective if self.objective.get("kind") == "question_answering" else {}
        how = QuestionAnswering.model_validate({**fields, "kind": "question_answering"})
        found = answers.spans(self.network, how, self._tokens(texts), self.context)
        least = 0.0 if how.threshold == "tuned" else how.threshold
        encoded = self.tokenizer.encode([context for _, context in texts])
        return [
            "" if how.no_answer and span.margin > least else span.text(context, e.offsets)
            for span, (_, context), e in zip(found, texts, encoded, strict=True)
        ]

    def _tag(self, text: Any) -> list[tuple[str, str]]:
        if isinstance(text, str):
            spans = [m.span() for m in WORD.finditer(text)]
        else:
            words = list(text)
            text, starts = join_words(words)
            spans = [(start, start + len(word)) for start, word in zip(starts, words)]
        (encoded,) = self.tokenizer.encode([text])
        batch = cut.single(self._part_tokens({"text": [encoded]}), self.context)
        first, last = covered([start for start, _ in spans], [end for _, end in spans], encoded.offsets)
        room = len(batch.streams["text"].content) - len(self.context.layout.first) - len(self.context.layout.last)
        read = (first < last) & (first < room)
        at = first[read] + len(self.context.layout.first)
        names = self._names()
        labels = np.full(len(spans), "O" if "O" in names else "", object)
        if not len(at):
            return [(text[a:b], label) for (a, b), label in zip(spans, labels)]
        target = text_target(at, np.zeros(len(at), np.int64), stream=self.context.words)
        best = self._scores(labelled.words_in(batch, self.context), "tag", target).argmax(-1).tolist()
        labels[read] = [names[i] for i in best]
        return [(text[a:b], label) for (a, b), label in zip(spans, labels)]

    def _names(self) -> list[str]:
        head = self.network.spec.heads[self.task]
        assert isinstance(head, (ClassHead, TokenHead))
        return list(self.labels) if len(self.labels) == head.outputs else [str(n) for n in range(head.outputs)]

    def _tokens(self, texts: Sequence[Text]) -> Tokens:
        paired = [isinstance(text, (tuple, list)) for text in texts]
        check(all(paired) or not any(paired), "some of the texts are pairs and some are not", "give either pairs or single texts")
        if not any(paired):
            return self._part_tokens({"text": self.tokenizer.encode([str(text) for text in texts])})
        return self._part_tokens({n: self.tokenizer.encode([t[i] for t in texts]) for i, n in enumerate(("text", "pair"))})

    def _part_tokens(self, encoded: dict[str, list[Encoded]]) -> Tokens:
        count = len(next(iter(encoded.values())))
        none = np.zeros((0, 3), np.int64), np.zeros(count + 1, np.int64)
        parts = {}
        for name, texts in encoded.items():
            ids, words, sentences = (np.concatenate([getattr(e, what) for e in texts]) for what in ("ids", "words", "sentences"))
            parts[name] = Part(ids, bounds_of(np.array([len(e) for e in texts])), words, sentences, *none)
        return Tokens(parts, np.arange(count, dtype=np.uint64))

    @torch.no_grad()
    def _scores(self, batch: Batch, head: str, target: Target) -> torch.Tensor:
        """float32[K, outputs] of a head."""
        asked = to_device(Batch(batch.streams, {"asked": target}, batch.keys), next(self.network.parameters()).device)
        network = self.filler if head == "lm" else self.network
        hidden = network(asked.streams)
        return network.logits(head, hidden, asked.streams, asked.targets["asked"]).float().cpu()


def load(folder: Path | str, task: str | None = None) -> Model:
    """Open a checkpoint, a stage's folder, or a Hugging Face folder; raises `UserError` if it is none. Of a model of several tasks `task`
    says which of them is asked."""
    opened = open_checkpoint(folder)
    check(
        task is not None or not opened.tasks,
        f"{opened.folder} is a model of {len(opened.tasks)} tasks: {', '.join(opened.tasks)}",
        "say which one is asked: `task` (--task)",
    )
    return Model(opened if task is None else opened.alone(task))
