"""Recipes: what is filled in and from where, and what does not fit together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ziggurat.config import check_spec, dump, load, load_tree, schema
from ziggurat.errors import UserError
from ziggurat.train.recipe import Recipe, resolve

TEXT = """\
name: demo
system: roberta/tiny
model: {layers: 4, width: 256}
tokenizer: {kind: wordpiece, vocab: 8000, lowercase: true}
sources:
  general: {kind: docstrings, exclude: [sympy]}
  domain: {path: reviews/*.jsonl, columns: {text: body}}
  task: {path: train.jsonl, test: test.jsonl, columns: {text: sentence, label: sentiment}}
defaults: {length: 64, optim: {lr: 1e-3}, steps: 5}
stages:
  - stage: pretrain
    data: general
    time: 4m
  - stage: dapt
    data: {domain: 0.8, general: 0.2}
    tokens: 1_000_000
    objective: {rate: 0.3, kind: mlm}
  - stage: tapt
    data: task
    optim: {lr: 3e-4, clip: null}
  - stage: finetune
    data: task
    objective: {kind: classify, labels: [neg, pos]}
    examples: 500
    epochs: 7
"""
SHIPPED = sorted((Path(__file__).parents[2] / "recipes").rglob("*.yaml"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "demo.yaml"
    made.write_text(TEXT, "utf-8")
    return made


def wrong(path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as e:
        load(path, overrides, model=Recipe)
    return str(e.value)


def test_order_of_resolution(path: Path) -> None:
    full = load(path, ["stages.dapt.length=32", "defaults.dropout=0.2"], model=Recipe).resolved()
    pretrain, dapt, tapt, finetune = full.stages
    assert [s.optim.lr for s in full.stages] == [1e-3, 1e-3, 3e-4, 1e-3]  # kind < defaults < stage
    assert (tapt.optim.clip, tapt.optim.weight_decay) == (None, 0.01)
    assert [s.length for s in full.stages] == [64, 32, 64, 64]
    assert [s.dropout for s in full.stages] == [0.2] * 4
    assert [s.budget for s in full.stages] == [("time", 240), ("tokens", 1_000_000), ("steps", 5), ("epochs", 7)]
    assert [s.init for s in full.stages] == ["scratch", "pretrain", "dapt", "tapt"]
    assert [s.objective.kind for s in full.stages if s.objective] == ["mlm", "mlm", "mlm", "classify"]  # the system's
    assert pretrain.objective is not None and pretrain.objective.model_dump()["rate"] == 0.15
    assert dapt.objective is not None and dapt.objective.model_dump()["rate"] == 0.3
    assert {name: share.weight for name, share in dapt.data.items()} == {"domain": 0.8, "general": 0.2}
    assert (pretrain.batch.tokens, pretrain.batch.documents) == (2048, None)
    assert (finetune.batch.tokens, finetune.batch.documents) == (None, 16)
    assert {k: v for k, v in full.model if v is not None} == {"layers": 4, "width": 256, "heads": 4, "mlp": 1024}
    single = full.body(vocab=99)
    assert single is not None and (single.layers, single.width, single.heads, single.vocab) == (4, 256, 4, 99)
    assert full.defaults is None and full.worth is not None and full.worth.seeds == (0, 1, 2)


def test_stage_kinds_have_their_defaults(path: Path) -> None:
    text = TEXT.replace("defaults: {length: 64, optim: {lr: 1e-3}, steps: 5}\n", "").replace("    epochs: 7\n", "")
    path.write_text(text.replace("optim: {lr: 3e-4, clip: null}", "epochs: 2"), "utf-8")
    stages = load(path, model=Recipe).resolved().stages
    assert [s.optim.lr for s in stages] == [5e-4, 1e-4, 1e-4, 5e-5]
    assert [s.dropout for s in stages] == [0, 0, 0, 0.1]
    assert stages[-1].budget == ("epochs", 3)


def test_resolved_recipes_are_their_own_resolution_and_read_back(path: Path, tmp_path: Path) -> None:
    full = load(path, model=Recipe).resolved()
    again = tmp_path / "again.yaml"
    again.write_text(dump(full), "utf-8")
    assert load(again, model=Recipe) == full
    assert load(again, model=Recipe).resolved() == full


def test_a_tokenizer_brought_along_reads_back(path: Path, tmp_path: Path) -> None:
    path.write_text(TEXT.replace("{kind: wordpiece, vocab: 8000, lowercase: true}", "{path: mine}"), "utf-8")
    full = load(path, model=Recipe).resolved()
    again = tmp_path / "again.yaml"
    again.write_text(dump(full), "utf-8")
    assert load(again, model=Recipe).tokenizer == full.tokenizer


def test_origins(path: Path) -> None:
    recipe, root = load_tree(path, ["stages.tapt.steps=9"], model=Recipe)
    full = resolve(recipe, root)

    def where(*at: Any) -> str:
        return full.at(at).where

    assert where("stages", 0, "length") == f"{path}:9"
    assert where("stages", 2, "optim", "lr") == f"{path}:20"
    assert where("stages", 2, "steps") == "command line (stages.tapt.steps=9)"
    assert where("stages", 3, "dropout") == "default of finetune"
    assert where("stages", 0, "objective", "kind") == "system roberta"
    assert where("model", "layers") == f"{path}:3"
    assert where("model", "heads") == "follows width"


@pytest.mark.parametrize(
    "overrides, expected",
    [
        (["system=robreta/tiny"], "demo.yaml:2"),
        (["system=robreta/tiny"], "unknown system 'robreta/tiny'; did you mean 'roberta/tiny'?"),
        (["system=bert/tniy"], "did you mean 'bert/tiny'?"),
        (["system=bert"], "'bert' needs a size: bert/tiny"),
        (["system=bert", "stages.pretrain.init=some/folder"], "demo.yaml:3  model: dimensions are those of the checkpoint"),
        (["model.width=250"], "model: width 250 is not a multiple of 64"),
        (["tokenizer=null"], "tokenizer: is missing"),
        (["stages.pretrain.data=genral"], "stages.pretrain.data: unknown source 'genral'; did you mean 'general'?"),
        (["stages.dapt.data=null"], "stages.dapt.data"),
        (["stages.dapt.data={}"], "demo.yaml:14  stages.dapt: has no data; name a source: general, domain, task"),
        (["stages.dapt.data=[domain]"], "stages.dapt.data: needs one source name"),
        (["stages.dapt.data.domain=-1"], "stages.dapt.data.domain.weight: must be above 0 (got -1)"),
        (["stages.tapt.name=dapt"], "two stages are called 'dapt'"),
        (["stages.tapt.name=worth"], "'worth' is a folder of every run"),
        (["stages.tapt.name=a/b"], "stages.a/b.name: must match"),
        (["stages.dapt.init=finetune"], "stages.dapt.init: 'finetune' is not an earlier stage"),
        (
            ["stages.pretrain.objective={kind: classify, labels: [a, b]}"],
            "'classify' needs labels: it belongs in a finetune stage",
        ),
        (["stages.finetune.objective={kind: mlm}"], "'mlm' has no labels; a finetune stage needs a labelled objective"),
        (["stages.pretrain.objective={kind: mass}"], "mass is for models of structure encoder_decoder, this one is single"),
        (["stages.pretrain.objective={kind: unilm}"], "unilm has segment ids up to 5, the model's table 1 rows"),
        (["stages.finetune.objective=null"], "stages.finetune: has no objective"),
        (["stages.finetune.data={task: 1, domain: 1}"], "a finetune stage reads one source, not 2"),
        (["stages.finetune.data=domain"], "source 'domain' declares no labels"),
        (["sources.task.test=null"], "source 'task' has no `test` rows to score on"),
        (["stages.dapt.examples=5"], "counts labelled rows, and dapt reads plain text"),
        (["defaults.length=1000"], "command line (defaults.length=1000)  defaults.length: 1000 is longer than the 512 positions"),
        (["stages.dapt.batch.tokens=32"], "a micro-batch of 32 tokens cannot hold one example of length 64"),
        (["stages.dapt.batch={}", "stages.dapt.batch.tokens=null"], "needs one limit: tokens or documents"),
        (["stages.dapt.epochs=2"], "stages.dapt.epochs: 2 sources have epochs of their own"),
        (["stages.dapt.batch.documents=8"], "stages.dapt.tokens: a budget in tokens needs batches limited by tokens"),
        (["stages.dapt.accumulate=0"], "stages.dapt.accumulate: must be at least 1 (got 0)"),
        (["stages.tapt.freeze={layers: 5}"], "stages.tapt.freeze: there are 4 layers, not 5; freeze: {layers: 4}"),
        (["stages.tapt.lora={targets: [q, gate]}"], "the model has no matrices 'gate'; targets: q, k, v, out, up, down"),
        (["stages.tapt.schedule={warmup: 100}"], "stages.tapt.schedule: a schedule with 100 updates of warm-up in a stage of 5;"),
        (["defaults.schedule={warmup: 400, kind: wsd, decay: 90}"], "400 updates of warm-up and 90 of decay in a stage of 489"),
        (["stages.pretrain.schedule={kind: wsd, warmup: 0.7, decay: 0.4}"], "0.7 of the stage for warm-up and 0.4 for decay;"),
        (["worth.seeds=[1, 1]"], "each seed may stand once"),
        (
            ["sources.general.kind=docstring"],
            "must be one of files, hub, docstrings, docstring_backticks; did you mean 'docstrings'?",
        ),
        (["seeed=1"], "command line (seeed=1)  seeed: unknown field; did you mean 'seed'?"),
    ],
)
def test_what_does_not_fit(path: Path, overrides: list[str], expected: str) -> None:
    if expected == "demo.yaml:2":
        path.write_text(TEXT.replace("roberta/tiny", "robreta/tiny"), "utf-8")
        overrides = []
    assert expected in wrong(path, *overrides)


def test_exactly_one_budget(path: Path) -> None:
    path.write_text(TEXT.replace("    time: 4m\n", "    time: 4m\n    epochs: 2\n").replace(", steps: 5", ""), "utf-8")
    message = wrong(path)
    assert "demo.yaml:11  stages.pretrain: has 2 budgets (epochs, time); give exactly one of" in message
    assert "demo.yaml:19  stages.tapt: has no budget; give exactly one of steps, tokens, epochs, time" in message
    assert message.startswith("2 mistakes")


def test_all_at_once(path: Path) -> None:
    found = wrong(
        path, "system=x/y", "stages.dapt.data=nothing", "stages.tapt.init=finetune", "stages.pretrain.lenght=3", "seed=-1"
    )
    assert found.startswith("5 mistakes")


def test_large_models_are_not_fine_tuned_many_times_unasked(path: Path) -> None:
    large = ["system=roberta/large", "model={layers: 24, width: 1024}"]
    assert load(path, large, model=Recipe).resolved().worth is None
    assert load(path, [*large, "model.layers=12"], model=Recipe).resolved().worth is not None
    asked = load(path, [*large, "worth=true"], model=Recipe).resolved().worth
    assert asked is not None and asked.seeds == (0, 1, 2)
    assert load(path, ["system=roberta/base", "model={layers: 12, width: 768}"], model=Recipe).resolved().worth is not None


def test_worth_needs_a_finetune_stage(path: Path) -> None:
    text = TEXT[: TEXT.index("  - stage: finetune")]
    path.write_text(text, "utf-8")
    assert load(path, model=Recipe).resolved().worth is None
    path.write_text(text + "worth: {seeds: [0]}\n", "utf-8")
    assert "worth: needs a finetune stage" in wrong(path)
    path.write_text(TEXT + "worth: false\n", "utf-8")
    assert load(path, model=Recipe).resolved().worth is None


def test_init_brings_model_and_tokenizer(path: Path) -> None:
    text = TEXT.replace("roberta/tiny", "bert").replace("model: {layers: 4, width: 256}\n", "")
    text = "".join(line for line in text.splitlines(True) if not line.startswith("tokenizer"))
    path.write_text(text.replace("    time: 4m\n", "    time: 4m\n    init: models/minilm\n"), "utf-8")
    full = load(path, model=Recipe).resolved()
    assert full.stages[0].init == "models/minilm" and full.body() is None and full.tokenizer is None


def test_recipes_built_in_python(path: Path) -> None:
    recipe = load(path, model=Recipe)
    broken = recipe.model_copy(update={"system": "bret/base"})
    with pytest.raises(UserError, match="system: unknown system 'bret/base'"):
        broken.resolved()
    made = check_spec(Recipe, {**load_tree(path, model=Recipe)[1].plain(), "seed": 4}, "my recipe")
    assert made.resolved().seed == 4


def test_a_decoder_is_as_deep_as_its_encoder_unless_it_is_told() -> None:
    for overrides, layers in ([], 2), (["model.layers=3"], 3), (["model.layers=3", "model.decoder_layers=1"], 1):
        shipped = Path(__file__).parents[2] / "recipes" / "t5.yaml"
        full = load(shipped, ["system=t5/tiny", *overrides], model=Recipe).resolved()
        assert full.model.decoder_layers == layers and full.body() == full.resolved().body()
        assert full.body().decoder_layers == layers  # type: ignore[union-attr]


@pytest.mark.parametrize("shipped", SHIPPED, ids=lambda p: p.stem)
def test_shipped_recipes_are_right(shipped: Path) -> None:
    load(shipped, model=Recipe).resolved()


def test_the_schema_has_every_objective_and_source() -> None:
    text = str(schema(Recipe))
    for kind in ("mlm", "clm", "classify", "docstrings", "hub"):
        assert f"'const': '{kind}'" in text
    assert "Peak learning rate." in text


def test_a_fresh_model_has_the_query_vectors_that_stages_need(path: Path) -> None:
    """One that is there already cannot get them: then the objective does not fit."""
    recipe = load(path, ["stages.pretrain.objective={kind: plm}"], model=Recipe).resolved()
    objective, body = recipe.stages[0].objective, recipe.body()
    assert objective is not None and body is not None and body.embed.extra == 0
    assert objective.equipped(body).embed.extra == 1 and objective.misfits(objective.equipped(body)) == []
    assert objective.misfits(body) == ["plm needs 1 learned query vectors, the model has 0"]
