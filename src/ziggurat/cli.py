"""The command line: eleven verbs, each a call of one function. Nothing heavy is imported before a verb runs."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from ziggurat import __version__
from ziggurat.errors import Stopped, UserError

app = typer.Typer(
    name="ziggurat",
    help="Raw text in; the strongest model for your task out, with numbers at every stage that say whether it was worth it.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

INTERRUPTED = 130
RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe file (YAML).")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Values over the recipe's, as in stages.finetune.epochs=2"),
]
Checkpoint = Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="A checkpoint folder, or a stage's folder.")]


def verb(function: Callable[..., Any]) -> Callable[..., Any]:
    """A command whose user errors are printed plainly (exit code 2) and whose end by a signal is one line (130, 143)."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        from ziggurat import log

        log.setup()
        try:
            return function(*args, **kwargs)
        except UserError as e:
            print(f"error: {e}", file=sys.stderr)
            raise typer.Exit(2) from None
        except Stopped as e:
            print("stopped; the same command continues from here", file=sys.stderr)
            raise typer.Exit(e.code) from None
        except KeyboardInterrupt:
            print("interrupted; the same command continues from the last checkpoint", file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from None

    return run


def _version(wanted: bool) -> None:
    if wanted:
        print(f"ziggurat {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    pass


@app.command("run")
@verb
def run_(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Prepare what is missing, then run or resume all stages of a recipe."""
    from ziggurat.pipeline.run import run

    run(recipe, overrides or [])


@app.command("prepare")
@verb
def prepare_(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Make the tokenizer and the shards of a recipe, nothing else."""
    from ziggurat.pipeline.run import prepare

    prepare(recipe, overrides or [])


@app.command("doctor")
@verb
def doctor_(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Look for what is wrong with a recipe, its data and this machine before it runs: leaks, labels, time, memory, disk.

    Prepares the recipe, as `run` does first, and begins every stage for a moment (about ten seconds in all). Ends with 1 if
    something was found that would make the run fail or its numbers mean nothing.
    """
    from ziggurat.pipeline import doctor
    from ziggurat.pipeline.show import table

    found = doctor.doctor(recipe, overrides or [])
    for title, header, rows in doctor.tables(found):
        print(title)
        table(header, rows)
        print()
    print("\n".join(doctor.summary(found)))
    if doctor.failed(found):
        raise typer.Exit(1)


@app.command("evaluate")
@verb
def evaluate_(
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="CHECKPOINT... SUITE|RECIPE [KEY=VALUE]...",
            help="Checkpoint folders; then a built-in suite, or a file with a suite or a recipe; then values over the file's.",
        ),
    ],
) -> None:
    """Score checkpoints on a suite of tasks, fine-tuned with several seeds; or one on the held-out and test rows of a recipe."""
    from ziggurat.pipeline.evaluate import evaluate

    evaluate(what)


@app.command("interpolate")
@verb
def interpolate_(
    recipe: RecipePath,
    overrides: Overrides = None,
    stage: Annotated[str, typer.Option(help="A finished stage of text; otherwise the last one.")] = "",
    points: Annotated[int, typer.Option(min=2, help="Shares tried, evenly from 0 (the start) to 1 (trained).")] = 11,
    share: Annotated[float | None, typer.Option(min=0, max=1, help="Take this share instead of choosing one.")] = None,
    limit: Annotated[
        float | None, typer.Option(min=0, help="Most forgetting, in nats a predicted token; otherwise the recipe's.")
    ] = None,
    to: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Where the chosen weights go.")] = None,
) -> None:
    """Measure weights between a stage's start and what it trained, and write the best within the limit of forgetting."""
    from ziggurat.pipeline.interpolation import interpolate
    from ziggurat.pipeline.show import table
    from ziggurat.train.adaptation import Interpolate

    table(*interpolate(recipe, overrides or [], stage, Interpolate(points=points, share=share, limit=limit), to))


@app.command("soup")
@verb
def soup_(
    checkpoints: Annotated[list[str], typer.Argument(metavar="CHECKPOINT...", help="Two or more of one shape, from one start.")],
    to: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the mean goes.")],
    weights: Annotated[str, typer.Option(help="One number each, as in 0.2,0.8; otherwise all alike.")] = "",
) -> None:
    """Write the mean of checkpoints: of fine-tunings with several seeds, or of a fine-tuned model and its start."""
    from ziggurat.pipeline.soup import shares, soup

    typer.echo(soup(checkpoints, to, shares(weights)))


@app.command("sweep")
@verb
def sweep_(
    recipe: RecipePath,
    stage: Annotated[str, typer.Argument(metavar="STAGE", help="The stage, by its name.")],
    values: Annotated[
        list[str],
        typer.Argument(
            metavar="FIELD=V1,V2... [KEY=VALUE]...",
            help="Values of the stage's fields, as in optim.lr=1e-5,3e-5; then values over the recipe's, as in seed=1",
        ),
    ],
    seeds: Annotated[
        str, typer.Option(metavar="0,1,2", help="Otherwise worth.seeds for a fine-tuning, the recipe's for text.")
    ] = "",
) -> None:
    """Run a stage with every combination of some values, compare them on held-out rows, and say which is best.

    ziggurat sweep mine.yaml finetune optim.lr=1e-5,3e-5,1e-4 batch.documents=16,32 --seeds 0,1,2

    FIELD is a field of the stage, as recipes have it in that stage; what begins with a field of the recipe (seed=1,
    stages.pretrain.steps=100) is laid over the recipe, as in `run`. The stages before are run first, as `run` does. Repeating
    the command goes on, and values added later run alone. Test rows are scored for the best point only.
    """
    from ziggurat.pipeline.sweep import command

    command(recipe, stage, values, seeds)


@app.command("import")
@verb
def import_(
    source: Annotated[Path, typer.Argument(metavar="FOLDER", help="A model folder in Hugging Face format.")],
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="The folder to make.")],
) -> None:
    """Make a checkpoint from a Hugging Face folder."""
    from ziggurat.systems.hub import import_folder

    made, notes = import_folder(source, checkpoint)
    print("\n".join([f"{source} -> {made}", *notes]))


@app.command("export")
@verb
def export_(
    checkpoint: Checkpoint,
    target: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder to make.")],
    architecture: Annotated[
        str | None, typer.Option(metavar="CLASS", help="The Hub's class to write; otherwise the one for the model's heads.")
    ] = None,
    task: Annotated[str | None, typer.Option(help="Of a model of several tasks: whose head goes with the encoder.")] = None,
) -> None:
    """Write a checkpoint in Hugging Face format, loadable by AutoModel.from_pretrained."""
    from ziggurat.systems.hub import export_checkpoint

    made = export_checkpoint(checkpoint, target, architecture=architecture, task=task)
    print("\n".join([f"{checkpoint} -> {target}", *made.notes]))


@app.command("show")
@verb
def show_(
    what: Annotated[str, typer.Argument(metavar="RECIPE|SYSTEM|CHECKPOINT", help="recipe.yaml, bert/base, or a folder.")],
    overrides: Overrides = None,
    batch: Annotated[bool, typer.Option("--batch", help="Draw one batch of the recipe's first stage.")] = False,
    stage: Annotated[str, typer.Option(help="With --batch: of this stage.")] = "",
) -> None:
    """Print a resolved recipe with each value's origin, a system, or a checkpoint and its lineage."""
    from ziggurat.pipeline import show

    print(show.batch_of(what, overrides or [], stage) if batch else show.show(what, overrides or []))


@app.command("list")
@verb
def list_(
    what: Annotated[str, typer.Argument(metavar="systems|objectives|matrix|recipes|stages|suites")],
) -> None:
    """Print the systems, objectives, recipes, stages or suites there are, or which objective trains which structure."""
    from ziggurat.pipeline.show import listing, table

    table(*listing(what))


@app.command("try")
@verb
def try_(
    checkpoint: Checkpoint,
    text: Annotated[str, typer.Argument(help="What to give the model; [MASK] to be filled.")],
    pair: Annotated[str, typer.Option(metavar="TEXT", help="The second text of a pair: a question's context.")] = "",
    choice: Annotated[list[str] | None, typer.Option(metavar="TEXT", help="A text to choose from; give two or more.")] = None,
    task: Annotated[str, typer.Option(help="Of a model of several tasks: which one answers.")] = "",
) -> None:
    """Try a checkpoint on one text: fill masks, continue, label, answer or choose."""
    from ziggurat.pipeline.tryout import try_checkpoint

    print(try_checkpoint(checkpoint, text, pair, choice or [], task))


def main() -> None:
    """The `ziggurat` command."""
    app()
