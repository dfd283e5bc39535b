"""Recipe files: every mistake at once, at its line, in plain words; and what is written reads back the same."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pytest
from hypothesis import given as sampled
from hypothesis import settings
from hypothesis import strategies as st
from pydantic import Field, model_validator

from ziggurat.config import Duration, Problem, Spec, check_spec, dump, load, load_tree, schema, seconds, written
from ziggurat.errors import UserError


class Optim(Spec):
    lr: float = Field(1e-4, gt=0)
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.98)


class Mlm(Spec):
    kind: Literal["mlm"] = "mlm"
    rate: float = Field(0.15, gt=0, lt=1)


class Labels(Spec):
    kind: Literal["classify"] = "classify"
    labels: tuple[str, ...] = ()


class Step(Spec):
    rivals: ClassVar[tuple[tuple[str, ...], ...]] = (("steps", "time"),)
    whole: ClassVar[tuple[str, ...]] = ("data",)

    stage: Literal["pretrain", "finetune"]
    """Which stage."""
    name: str | None = None
    steps: int | None = Field(None, gt=0)
    time: Duration | None = None
    path: str | list[str] | None = None
    lower: bool = False
    data: dict[str, float] = Field(default_factory=dict)
    optim: Optim = Optim()
    objective: Annotated[Mlm | Labels, Field(discriminator="kind")] = Mlm()


class Plan(Spec):
    seed: int = 0
    sources: dict[str, Optim] = Field(default_factory=dict)
    stages: tuple[Step, ...] = ()

    @model_validator(mode="after")
    def _seeded(self) -> Plan:
        if self.seed == 13:
            raise ValueError("13 is unlucky")
        return self

    def problems(self) -> Any:
        for n, step in enumerate(self.stages):
            if (step.steps is None) == (step.time is None):
                yield Problem(("stages", n), "needs steps or time")
            for name in step.data:
                if name not in self.sources:
                    yield Problem(("stages", n, "data"), f"no source {name}", (("sources", name),))


def put(folder: Path, text: str, name: str = "a.yaml") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def mistakes(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(UserError) as e:
        load(path, overrides, model=Plan)
    return str(e.value).replace(f"{path.parent}/", "").split("\n")


def test_every_mistake_at_once_with_line_path_and_nearest_name(tmp_path: Path) -> None:
    path = put(
        tmp_path,
        "sede: 3\n"
        "stages:\n"
        "  - stage: pretrain\n"
        "    steps: ten\n"
        "    optim: {lr: -1,\n"
        "            lrr: 3}\n"
        "  - stage: finetun\n"
        "    steps: 1\n"
        "    objective: {kind: mlm, rate: 1.5, rat: 1}\n"
        "  - {name: third, steps: 2}\n"
        "  - {stage: finetune, name: last, steps: 1, objective: {kind: clasify}}\n",
    )
    found = mistakes(path, "stages.last.optim.betas=[1]", "stages.lats.steps=2", "oops")
    assert found == [
        "12 mistakes in a.yaml",
        "  command line (stages.lats.steps=2): stages has no 'lats'; did you mean 'last'?",
        "  command line (oops): an override is key=value, as in seed=1 or stages.finetune.epochs=2",
        "  command line (stages.last.optim.betas=[1])  stages.last.optim.betas.1: is missing",
        "  a.yaml:1  sede: unknown field; did you mean 'seed'?",
        "  a.yaml:4  stages.pretrain.steps: needs a whole number (got 'ten')",
        "  a.yaml:5  stages.pretrain.optim.lr: must be above 0 (got -1)",
        "  a.yaml:6  stages.pretrain.optim.lrr: unknown field; did you mean 'lr'?",
        "  a.yaml:7  stages.finetun.stage: must be one of pretrain, finetune; did you mean 'finetune'? (got 'finetun')",
        "  a.yaml:9  stages.finetun.objective.rate: must be below 1 (got 1.5)",
        "  a.yaml:9  stages.finetun.objective.rat: unknown field; did you mean 'rate'?",
        "  a.yaml:10  stages.third.stage: is missing: Which stage.",
        "  a.yaml:11  stages.last.objective: unknown kind 'clasify'; must be one of mlm, classify; did you mean 'classify'?",
    ]


def test_several_values_that_need_each_other_are_judged_beside_broken_ones(tmp_path: Path) -> None:
    path = put(
        tmp_path, "sources: {a: {lr: x}}\nstages:\n  - {stage: pretrain, data: {a: 1, b: 2}}\n  - {stage: finetune, stps: 1}\n"
    )
    found = mistakes(path)
    assert found[1:] == [
        "  a.yaml:1  sources.a.lr: needs a number (got 'x')",
        "  a.yaml:3  stages.pretrain: needs steps or time",
        "  a.yaml:3  stages.pretrain.data: no source b",
        "  a.yaml:4  stages.finetune.stps: unknown field; did you mean 'steps'?",  # and not: needs steps or time
    ]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("seed: 1\nseed: 2\n", "a.yaml:2: 'seed' is written twice in one map (first at {0}/a.yaml:1)"),
        ("stages:\n\t- a\n", "a.yaml:2: not valid YAML"),
        ("seed: [1\n", "a.yaml:2: not valid YAML"),
        ("- a\n- b\n", "a.yaml:1: a recipe is a map of `key: value` lines, not a list"),
        ("just text\n", "a.yaml:1: a recipe is a map"),
        ("", "a.yaml: the file is empty"),
        ("# only a comment\n", "a.yaml: the file is empty"),
        ("seed: &x [*x]\n", "contains itself"),
        ("<<: {a: 1}\n", "a.yaml:1: keys are plain names"),
        ("seed: !!python/name:os.system x\n", "a.yaml:1: not valid YAML"),
        ("seed: 1\n---\nseed: 2\n", "a.yaml:2: not valid YAML"),
        ("seed: \x01\n", "a.yaml: not valid YAML"),
        ("extends: nowhere.yaml\n", "a.yaml:1: extends: no such file"),
        ("extends: a.yaml\n", "a.yaml:1: extends: {0}/a.yaml and {0}/a.yaml extend each other"),
        ("extends: [a]\n", "a.yaml:1: extends: names one file"),
        ("seed: true\n", "a.yaml:1  seed: needs a number or text, not a truth value"),
        ("seed: 1.5\n", "a.yaml:1  seed: needs a whole number (got 1.5)"),
        ("seed: 13\n", "13 is unlucky"),
        ("sources: 3\n", "a.yaml:1  sources: needs a map of `key: value` lines (got 3)"),
        ("stages: {a: 1}\n", "a.yaml:1  stages: needs a list"),
        ("sources: {a: 3}\n", "a.yaml:1  sources.a: needs a map of `key: value` lines (got 3)"),
    ],
)
def test_broken_files(tmp_path: Path, text: str, expected: str) -> None:
    path = put(tmp_path, text)
    with pytest.raises(UserError) as e:
        load(path, model=Plan)
    assert expected.format(tmp_path) in str(e.value)


def test_tabs_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="never with tabs"):
        load(put(tmp_path, "stages:\n\t- a\n"), model=Plan)


def test_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    put(tmp_path, "seed: 1\n", "quickstart.yaml")
    with pytest.raises(UserError, match=r"no such file: .*quikstart.yaml; did you mean .*quickstart.yaml\?"):
        load(tmp_path / "quikstart.yaml", model=Plan)
    with pytest.raises(UserError, match="is a folder"):
        load(tmp_path, model=Plan)
    (tmp_path / "latin.yaml").write_bytes("seed: 1 # \xe9".encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8"):
        load(tmp_path / "latin.yaml", model=Plan)


def test_yaml_traps(tmp_path: Path) -> None:
    path = put(
        tmp_path,
        "seed: 1_000_000\nstages:\n"
        "  - {stage: pretrain, steps: 1e3, lower: yes, optim: {lr: 1e-4}}\n"
        "  - {stage: finetune, steps: 1, objective: {kind: classify, labels: [yes, no, on, 12:30, 010]}}\n",
    )
    plan = load(path, model=Plan)
    assert plan.seed == 1_000_000
    assert plan.stages[0].steps == 1000 and plan.stages[0].lower is True and plan.stages[0].optim.lr == 1e-4
    assert plan.stages[1].objective == Labels(labels=("yes", "no", "on", "12:30", "010"))
    bad = put(tmp_path, "stages: [{stage: finetune, steps: 1, objective: {kind: classify, labels: [true, 1]}}]\n", "b.yaml")
    found = "\n".join(mistakes(bad))
    assert 'true is a truth value in YAML; for text write it in quotes: "true"' in found
    assert '1 is a number in YAML; for text write it in quotes: "1"' in found


def test_a_value_that_fits_no_alternative_is_one_mistake(tmp_path: Path) -> None:
    found = mistakes(put(tmp_path, "stages: [{stage: pretrain, steps: 1, path: 3}]\n"))
    assert found[1:] == ["  a.yaml:1  stages.pretrain.path: needs text or needs a list (got 3)"]


@pytest.mark.parametrize(
    "text, value",
    [("20m", 1200), ("90s", 90), ("1h30m", 5400), ("1.5h", 5400), ("2d", 172800), (45, 45), ("45", 45), ("1H 30M", 5400)],
)
def test_durations(text: Any, value: float) -> None:
    assert seconds(text) == value


@pytest.mark.parametrize("text", ["20 minutes", "1:30", "", "m", "-5", "0", 0, True, None, [1], "nan", "inf"])
def test_no_durations(text: Any) -> None:
    with pytest.raises(ValueError, match="length of time"):
        seconds(text)


@settings(deadline=None)
@sampled(st.integers(1, 10**7) | st.floats(0.01, 1e6))
def test_durations_read_back(value: float) -> None:
    assert seconds(written(value)) == value


def test_overrides(tmp_path: Path) -> None:
    path = put(
        tmp_path,
        "stages:\n  - {stage: pretrain, time: 4m, data: {a: 1}}\n  - {stage: finetune, steps: 3}\nsources: {a: {}, b: {}}\n",
    )
    over = [
        "stages.finetune.steps=2",
        "stages.0.steps=7",
        "seed=5",
        "stages.finetune.objective.kind=classify",
        "stages.0.data={b: 2}",
    ]
    plan, root = load_tree(path, [*over, "sources.c.lr=2e-3", "stages.0.optim={lr: 1}"], model=Plan)
    assert plan.stages[1].steps == 2 and plan.seed == 5
    assert (plan.stages[0].steps, plan.stages[0].time) == (7, None)  # a budget replaces its rival
    assert plan.stages[1].objective == Labels()
    assert plan.stages[0].data == {"b": 2}
    assert plan.sources["c"].lr == 2e-3
    assert root.at(("stages", 0, "steps")).where == "command line (stages.0.steps=7)"
    assert root.at(("stages", 1, "stage")).where == f"{path}:3"
    assert "stages.0.stage is a single value (pretrain), not a map" in "\n".join(mistakes(path, "stages.0.stage.x=1"))
    assert "not valid YAML" in "\n".join(mistakes(path, "seed=[1"))


def test_extends(tmp_path: Path) -> None:
    put(
        tmp_path,
        "seed: 1\nstages:\n"
        "  - {stage: pretrain, time: 4m, optim: {lr: 1, betas: [0, 0]}, objective: {kind: mlm, rate: 0.5}}\n"
        "  - {stage: finetune, steps: 3}\n",
        "base/b.yaml",
    )
    path = put(
        tmp_path,
        "extends: base/b.yaml\nstages:\n"
        "  - stage: pretrain\n    steps: 9\n    optim: {betas: [0.1, 0.1]}\n    objective: {kind: classify}\n"
        "  - {stage: pretrain, name: again, steps: 1}\n",
    )
    plan, root = load_tree(path, model=Plan)
    assert [s.name or s.stage for s in plan.stages] == ["pretrain", "again", "finetune"]  # a new one follows its neighbour
    first = plan.stages[0]
    assert (first.steps, first.time, first.optim) == (9, None, Optim(lr=1, betas=(0.1, 0.1)))
    assert first.objective == Labels()  # another kind starts clean
    assert root.at(("stages", 0, "optim", "lr")).where == f"{tmp_path}/base/b.yaml:3"
    assert root.at(("stages", 0, "steps")).where == f"{path}:4"
    put(tmp_path, "extends: d.yaml\n", "c.yaml")
    with pytest.raises(UserError, match="extend each other"):
        load(put(tmp_path, "extends: c.yaml\n", "d.yaml"), model=Plan)


TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=8)
AWKWARD = st.sampled_from(
    ["yes", "1e-4", "1e5", "true", "null", "~", "010", "0x1F", "12:30", "1_000", ".5", "2024-01-01", "中文", "=", "- a"]
)


@settings(max_examples=40, deadline=None)
@sampled(st.lists(TEXT | AWKWARD, max_size=4), st.floats(1e-9, 1e9), st.integers(1, 10**9), st.booleans())
def test_dump_reads_back(tmp_path_factory: pytest.TempPathFactory, labels: list[str], lr: float, steps: int, lower: bool) -> None:
    step = Step(stage="finetune", steps=steps, lower=lower, optim=Optim(lr=lr), objective=Labels(labels=tuple(labels)))
    plan = Plan(stages=(step, Step(stage="pretrain", time=5400)))
    path = put(tmp_path_factory.getbasetemp(), dump(plan), "again.yaml")
    assert load(path, model=Plan) == plan
    assert "time: 1h30m" in dump(plan)


def test_python_data_gets_the_same_errors() -> None:
    with pytest.raises(UserError, match="unknown field; did you mean 'seed'"):
        check_spec(Plan, {"sede": 1}, "settings")
    assert check_spec(Plan, {"seed": 3}, "settings").seed == 3


def test_schema_carries_help_and_tags() -> None:
    made = schema(Plan)
    assert "extends" in made["properties"]
    assert made["$defs"]["Optim"]["properties"]["lr"]["description"] == "Peak learning rate."
    assert set(made["$defs"]["Step"]["properties"]["objective"]["discriminator"]["mapping"]) == {"mlm", "classify"}
    assert made["additionalProperties"] is False
