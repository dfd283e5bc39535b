"""The model card of an export, `README.md` with the Hub's YAML in front: the facts of the checkpoint's card, and nothing else.

Format: the Hub's "Model Cards" page and its model-index. What is not known is left out: language and licence, for example, are only
there when the recipe gives them (`card: {language: en, license: apache-2.0}`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

MARK = "<!-- written by ziggurat with the export; without this line the page is kept as it is -->"

TASKS = {
    "ForMaskedLM": "fill-mask",
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
    "ForConditionalGeneration": "text-generation",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForMultipleChoice": "multiple-choice",
}
"""End of a Hub class's name -> the Hub's task. Others (pre-training classes) are of no task there."""

METRICS = {
    "accuracy": "accuracy",
    "macro_f1": "f1",
    "micro_f1": "f1",
    "f1": "f1",
    "token_f1": "f1",
    "span_f1": "seqeval",
    "token_accuracy": "accuracy",
    "matthews": "matthews_correlation",
    "pearson": "pearsonr",
    "spearman": "spearmanr",
    "mse": "mse",
    "bleu": "sacrebleu",
    "chrf": "chrf",
    "rouge_1": "rouge",
    "rouge_2": "rouge",
    "rouge_l": "rouge",
}
"""Our metrics -> the Hub's `evaluate` modules; one that is not here keeps its name."""
AUTO = {
    "fill-mask": "AutoModelForMaskedLM",
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "AutoModelForQuestionAnswering",
    "multiple-choice": "AutoModelForMultipleChoice",
}


@dataclass(frozen=True)
class Facts:
    """What is known about an export."""

    system: str
    architecture: str
    """The Hub class."""
    parameters: int
    loads: bool = True
    """Whether transformers has the class."""
    tokenizer: bool = True
    labels: Sequence[str] = ()
    lineage: Sequence[Mapping[str, Any]] = ()
    """As `train.lineage` describes it; any key may be missing."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """language, license, base_model, datasets, tags: what the user said."""
    rank: int = 0
    """Of LoRA's additions, which are then all that is there; 0: a whole model."""


def page(facts: Facts) -> str:
    """The whole README.md."""
    front = yaml.safe_dump(metadata(facts), sort_keys=False, allow_unicode=True, width=10**6)
    return f"---\n{front}---\n{MARK}\n\n" + "\n\n".join(_body(facts)) + "\n"


def name(facts: Facts) -> str:
    """Recipe and stage, as far as they are known."""
    last = facts.lineage[-1] if facts.lineage else {}
    parts = [str(last[key]) for key in ("recipe", "name") if last.get(key)]
    return " ".join(parts) or facts.system


def metadata(facts: Facts) -> dict[str, Any]:
    """The YAML in front: only keys whose values are known."""
    said = facts.about
    hub = [o["hub"] for entry in facts.lineage for o in entry.get("origins", {}).values() if "hub" in o]
    task = task_of(facts.architecture)
    tags = ["ziggurat", facts.system, *said.get("tags", ())]
    tests = [entry["test"] for entry in facts.lineage[-1:] if "value" in entry.get("test", {})]
    found = {
        "language": said.get("language"),
        "license": said.get("license"),
        "library_name": None if not facts.loads else "peft" if facts.rank else "transformers",
        "pipeline_tag": task,
        "base_model": said.get("base_model"),
        "datasets": list(dict.fromkeys([*said.get("datasets", ()), *hub])),
        "tags": list(dict.fromkeys(tag for tag in tags if tag)),
        "metrics": list(dict.fromkeys(METRICS.get(t["metric"], t["metric"]) for t in tests)),
        "model-index": [_index(facts, task, tests)] if tests and task else None,
    }
    return {key: list(v) if isinstance(v, tuple) else v for key, v in found.items() if v}


def task_of(architecture: str) -> str | None:
    """The Hub's task of a class; None for classes that are of none."""
    return next((task for end, task in TASKS.items() if architecture.endswith(end)), None)


def _index(facts: Facts, task: str, tests: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The Hub's model-index: scores on test rows that it can list."""
    results = []
    for test in tests:
        origin = facts.lineage[-1].get("origins", {}).get(test["source"], {})
        dataset = {"name": test["source"], "type": origin.get("hub", test["source"]), "split": "test"}
        dataset |= {key: origin[key] for key in ("config", "revision") if key in origin}
        metric = {"type": METRICS.get(test["metric"], test["metric"]), "name": test["metric"], "value": round(test["value"], 6)}
        results.append({"task": {"type": task}, "dataset": dataset, "metrics": [metric]})
    return {"name": name(facts), "results": results}


def _body(facts: Facts) -> Iterator[str]:
    yield f"# {name(facts)}"
    stages = [e for e in facts.lineage if e.get("stage") != "import"]
    came = f", made in {len(stages)} stage{'s' * (len(stages) != 1)} with ziggurat" if stages else ""
    if facts.rank:
        kind = f"LoRA additions of rank {facts.rank}, {facts.parameters:,} parameters with new heads, to a {facts.system} model"
        yield f"{kind} (`{facts.architecture}`){came}. `adapter_config.json` names the model that they belong to."
    else:
        yield f"A {facts.system} model (`{facts.architecture}`) of {facts.parameters:,} parameters{came}."
    if facts.loads:
        yield _use(facts)
    if facts.labels:
        yield "Labels: " + ", ".join(f"`{label}`" for label in facts.labels) + "."
    scores = list(_scores(facts.lineage))
    if scores:
        yield "## Scores\n\n" + _table(["after", "on", "score"], scores)
    if facts.lineage:
        rows = [_row(entry) for entry in facts.lineage]
        header = ["stage", "objective", "steps", "tokens", "seed", "schedule", "memory", "new tokens"]
        yield "## How it was made\n\nStages, oldest first.\n\n" + _table(header, rows)
        if notes := [f"- {entry.get('name', '')}: {'; '.join(more)}." for entry in facts.lineage if (more := list(_more(entry)))]:
            yield "\n".join(notes)
    data = list(_data(facts.lineage))
    if data:
        said = "`content` identifies the tokens, labels and order of the documents, `drawn` which of them were read if not all."
        yield f"## Data\n\n{said}\n\n" + _table(["stage", "source", "from", "documents", "tokens", "content"], data)
    versions: Mapping[str, str] = next((e["versions"] for e in reversed(facts.lineage) if e.get("versions")), {})
    if versions:
        yield "Versions: " + ", ".join(f"{package} {number}" for package, number in versions.items()) + "."


def _use(facts: Facts) -> str:
    task = task_of(facts.architecture) or ""
    two = facts.architecture.endswith("ForConditionalGeneration")
    auto = (
        "AutoModelForSeq2SeqLM" if two else "AutoModelForCausalLM" if task == "text-generation" else AUTO.get(task, "AutoModel")
    )
    known = auto if task else facts.architecture
    if facts.rank:
        lines = ["from peft import PeftModel", f"from transformers import {known}", ""]
        lines += [f'base = {known}.from_pretrained("BASE")', 'model = PeftModel.from_pretrained(base, "FOLDER")']
        return "\n".join(["```python", *lines, "```"])
    names = [known, "AutoTokenizer"] if facts.tokenizer else [known]
    lines = [f"from transformers import {', '.join(sorted(names))}", ""]
    lines += ['tokenizer = AutoTokenizer.from_pretrained("FOLDER")'] if facts.tokenizer else []
    lines += [f'model = {known}.from_pretrained("FOLDER")']
    if facts.tokenizer and auto == "AutoModelForCausalLM":
        lines += [
            "# A text ends with a special token, which the tokenizer adds; a prompt goes on.",
            'prompt = tokenizer("Once upon a time", return_tensors="pt", add_special_tokens=False)',
            "print(tokenizer.decode(model.generate(**prompt, max_new_tokens=40)[0]))",
        ]
    return "\n".join(["```python", *lines, "```"])


def _scores(lineage: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    for entry in lineage:
        stage = str(entry.get("name", ""))
        for source, numbers in entry.get("held_out", {}).items():
            yield [stage, f"{source}, held out", ", ".join(f"{measure} {value:.4g}" for measure, value in numbers.items())]
        for test in [entry.get("test", {}), *entry.get("tests", {}).values()]:
            if "value" not in test:
                continue
            yield [stage, f"{test['source']}, {test['rows']:,} test rows", f"{test['metric']} {test['value']:.4f}"]


def _row(entry: Mapping[str, Any]) -> list[str]:
    objective = entry.get("objective", {})
    parts = objective.get("parts", ())
    named = [f"{n}: {p['kind']}" for n, p in parts.items()] if isinstance(parts, Mapping) else [p["kind"] for p in parts]
    kind = " + ".join(named) or objective.get("kind", "")
    numbers = [f"{entry[key]:,}" if key in entry else "" for key in ("steps", "tokens")]
    return [str(entry.get("name", "")), str(kind), *numbers, str(entry.get("seed", "")), *_means(entry)]


def _means(entry: Mapping[str, Any]) -> list[str]:
    """Schedule, memory and new tokens; empty where there were none, or an earlier version did not say."""
    schedule = entry.get("settings", {}).get("schedule", {})
    shown = ", ".join(
        str(v) if k == "kind" else f"{k} {v:g}" for k, v in schedule.items() if k != "decay" or schedule["kind"] == "wsd"
    )
    memory = f"{entry['memory']:,} tokens" if entry.get("memory") else ""
    asked = entry.get("vocabulary", {}).get("extend", 0)
    new = entry.get("new_tokens", asked)
    return [shown, memory, f"{new:,}" if new else ""]


def _more(entry: Mapping[str, Any]) -> Iterator[str]:
    """What else decided about the weights: where they start, means against forgetting, and which weights are handed on."""
    if entry.get("start"):
        yield f"start: {entry['start']}"
    for means in ("replay", "nearest", "anchor", "distill", "freeze", "lora"):
        if entry.get(means):
            value = yaml.safe_dump(entry[means], default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**6)
            yield f"`{means}: {value.strip()}`"
    if ended := entry.get("ended"):
        number = f", {ended['by']} {ended['score']:.4g}" if "by" in ended else ""
        yield f"the weights are those of step {entry['steps']:,} of {ended['trained']:,} trained ({ended['why']}{number})"
    if "interpolated" in entry:
        yield f"the weights are {entry['interpolated']:g} of the way from the stage's start to what it trained"
    if entry.get("of"):
        parts = ", ".join(f"{one['checkpoint']} (share {one['share']:.4g}, weights {one['weights']})" for one in entry["of"])
        yield f"the weights are the mean of {parts}"


def _data(lineage: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    for entry in lineage:
        for source, data in entry.get("data", {}).items():
            origin = entry.get("origins", {}).get(source, {})
            where = "; ".join(f"{kind}: {v if isinstance(v, str) else ', '.join(v)}" for kind, v in origin.items())
            numbers = [f"{data[key]:,}" if key in data else "" for key in ("documents", "tokens")]
            content = ", drawn ".join(str(data[key]) for key in ("content", "drawn") if data.get(key))
            yield [str(entry.get("name", "")), source, where, *numbers, content]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |" for line in lines)
