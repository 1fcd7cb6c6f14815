"""Commands and their options. What a command needs is imported when it runs, so help is quick."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from stepmark import __version__
from stepmark.cli.axes import with_axes
from stepmark.console import guarded
from stepmark.errors import UsageError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Results = Annotated[Path, typer.Option(help="Folder of saved runs.", metavar="DIR")]
Workloads = Annotated[
    list[str] | None,
    typer.Option(
        help="Built-in name, torchvision:NAME, package.module:function or "
        "path/to/file.py:function; may be given several times.",
        metavar="W",
    ),
]
Steps = Annotated[int, typer.Option(help="Steps of one measured window.")]
MaxSeconds = Annotated[float, typer.Option(help="Budget of one measured window.")]
Timeout = Annotated[float, typer.Option(help="Seconds until a scenario is killed.")]
Save = Annotated[
    str | None, typer.Option(help="Name of the run. Default: the time.", metavar="NAME")
]
Warmup = Annotated[
    int, typer.Option(help="Fewest warm-up steps; more are done until step times settle.")
]


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"stepmark {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    """Benchmark and profile PyTorch training loops."""


@app.command()
@with_axes
def run(
    context: typer.Context,
    workload: Workloads = None,
    steps: Steps = 50,
    warmup: Warmup = 5,
    max_seconds: MaxSeconds = 10.0,
    repeats: Annotated[int, typer.Option(help="Fresh processes per scenario.")] = 1,
    timeout: Timeout = 300.0,
    save: Save = None,
    results: Results = Path("results"),
    resume: Annotated[
        bool, typer.Option("--resume", help="Complete the run named by --save.")
    ] = False,
    download: Annotated[
        bool, typer.Option("--download", help="Let torchvision fetch datasets that are missing.")
    ] = False,
) -> None:
    """Measure the full product of the axes and save it as a run.

    Exit code 0: every scenario ok, or skipped with a reason; 1: some failed, all others are
    saved; 2: bad usage; 130: interrupted, what is finished is saved.
    """
    from stepmark.cli import axes, run_command
    from stepmark.scenario import Plan

    plan = Plan(
        steps=steps, warmup=warmup, max_seconds=max_seconds, repeats=repeats, timeout=timeout
    )
    scenarios = None
    if workload or not resume:
        scenarios = axes.scenarios(context.params)
    else:
        _refuse_beside(
            context,
            "a resumed run has its own axes and plan; leave it out, or measure under another name",
            ("save", "results", "resume", "download"),
        )
    raise typer.Exit(
        run_command.run(
            scenarios, plan, name=save, results=results, resume=resume, download=download
        )
    )


def _refuse_beside(context: typer.Context, why: str, allowed: Sequence[str]) -> None:
    """Any other option would be passed over in silence."""
    for name in context.params:
        source = context.get_parameter_source(name)
        given = source is not None and source.name == "COMMANDLINE"
        if given and name not in allowed:
            raise UsageError(f"--{name.replace('_', '-')}: {why}")


@app.command()
def export(
    run: Annotated[str, typer.Argument(help="Name, folder, or pytest-benchmark file of a run.")],
    format: Annotated[str, typer.Option(help="csv, json or parquet.")] = "csv",
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="File to write. Default: standard output."),
    ] = None,
    all_axes: Annotated[
        bool,
        typer.Option(
            "--all-axes",
            help="A column for every axis; empty is what the workload or torch chooses.",
        ),
    ] = False,
    results: Results = Path("results"),
) -> None:
    """Write a run's flat table: one row per scenario and repeat."""
    from stepmark.cli import export_command

    export_command.export(run, format, output, results, all_axes=all_axes)


@app.command()
def machine(
    json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Show this machine's fingerprint, and what makes it unfit to measure on."""
    from stepmark.cli import machine_command

    machine_command.show(json)


@app.command()
def compare(
    base: Annotated[str, typer.Argument(help="Name, folder, or pytest-benchmark file of a run.")],
    head: Annotated[str, typer.Argument(help="Another one.")],
    threshold: Annotated[str, typer.Option(help="Changes up to this do not matter.")] = "3%",
    format: Annotated[str, typer.Option(help="table, markdown, json or junit.")] = "table",
    across: Annotated[
        str, typer.Option(help="Software that differs on purpose, such as torch,cuda.")
    ] = "",
    results: Results = Path("results"),
) -> None:
    """Compare two saved runs: exit code 1 for a regression, 3 not comparable, 4 inconclusive."""
    from stepmark.compare import command

    code = command.compare(
        base, head, threshold=threshold, format=format, across=across, results=results
    )
    raise typer.Exit(code)


@app.command()
@with_axes
def gate(
    context: typer.Context,
    what: Annotated[
        str | None,
        typer.Argument(
            help="selftest: the same code on both sides, to find this machine's noise.",
            metavar="[selftest]",
            show_default=False,
        ),
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="Branch, tag or commit to compare with.", metavar="REF")
    ] = None,
    head: Annotated[
        str | None,
        typer.Option(
            help="What to judge. Default: the working tree, with its changes of files in git.",
            metavar="REF",
        ),
    ] = None,
    base_python: Annotated[
        str | None, typer.Option(help="Interpreter of base, if it is another.", metavar="PYTHON")
    ] = None,
    head_python: Annotated[
        str | None, typer.Option(help="Interpreter of head, if it is another.", metavar="PYTHON")
    ] = None,
    workload: Workloads = None,
    threshold: Annotated[str, typer.Option(help="Changes up to this do not matter.")] = "3%",
    same_loss: Annotated[
        bool, typer.Option("--same-loss", help="Sides that come to other losses: exit code 3.")
    ] = False,
    link: Annotated[
        list[Path] | None,
        typer.Option(
            help="File or folder that is not in git and both sides need, such as data; may be "
            "given several times.",
            metavar="PATH",
        ),
    ] = None,
    warmup: Warmup = 5,
    timeout: Annotated[
        float, typer.Option(help="Seconds a process may take to get ready, and for a turn.")
    ] = 300.0,
    format: Annotated[str, typer.Option(help="table, markdown, json or junit.")] = "table",
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="File for it; the table is printed all the same."),
    ] = None,
    results: Results = Path("results"),
) -> None:
    """Measure two revisions in turns on this machine and decide whether head is slower.

    Exit code 0: clean; 1: a regression; 2: bad usage; 3: not comparable, or missing on one side;
    4: inconclusive; 5: nothing was measured; 130: interrupted.
    """
    from stepmark.cli import axes, gate_command

    asked = gate_command.Asked(
        selftest=gate_command.is_selftest(what),
        base=base,
        head=head,
        base_python=base_python,
        head_python=head_python,
        links=tuple(link or ()),
        threshold=threshold,
        same_loss=same_loss,
        warmup=warmup,
        timeout=timeout,
        format=format,
        output=output,
        results=results,
    )
    raise typer.Exit(gate_command.gate(axes.scenarios(context.params), asked))


@app.command()
@with_axes
def profile(
    context: typer.Context,
    trace: Annotated[
        Path | None,
        typer.Option(
            help="An existing chrome trace of torch.profiler, compressed or not, instead of a "
            "workload.",
            metavar="FILE",
        ),
    ] = None,
    workload: Workloads = None,
    steps: Steps = 50,
    warmup: Warmup = 5,
    max_seconds: MaxSeconds = 10.0,
    timeout: Timeout = 300.0,
    save: Save = None,
    results: Results = Path("results"),
    json: Annotated[bool, typer.Option("--json", help="As JSON, in seconds and bytes.")] = False,
) -> None:
    """Show where the time of a step goes; the parts sum to wall time.

    A scenario is measured, then run again under torch.profiler in other processes; or a trace is
    read.
    """
    if trace is not None:
        from stepmark.cli import trace_command

        _refuse_beside(context, "--trace has its steps already", ("trace", "json"))
        trace_command.analyse(trace, json=json)
        return
    from stepmark.cli import axes, profile_command
    from stepmark.scenario import Plan

    plan = Plan(steps=steps, warmup=warmup, max_seconds=max_seconds, timeout=timeout)
    scenarios = axes.scenarios(context.params)
    raise typer.Exit(
        profile_command.profile(scenarios, plan, name=save, results=results, json=json)
    )


@app.command()
@with_axes
def advice(
    context: typer.Context,
    workload: Workloads = None,
    only: Annotated[
        str | None,
        typer.Option(help="Names of advice to try, by commas. Default: all.", metavar="LIST"),
    ] = None,
    budget: Annotated[str, typer.Option(help="Time for this call, such as 90s, 10m, 1h.")] = "10m",
    timeout: Annotated[
        float | None,
        typer.Option(
            help="Seconds a process may take to get ready, and for a turn. Default: 300, or what "
            "a resumed run was begun with."
        ),
    ] = None,
    save: Save = None,
    results: Results = Path("results"),
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run named by --save.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="As JSON, in SI units.")] = False,
) -> None:
    """Try the common advice here: each piece as pairs of processes without and with it, by turns.

    Without a workload: mlp-fashion-mnist. At the end the best combination is measured in fresh
    processes. Exit code 0; 1: the scenario itself cannot be measured; 2: bad usage; 130:
    interrupted.
    """
    from stepmark.cli import advice_command, axes
    from stepmark.units import parse_duration

    asked = advice_command.Asked(
        only=None if only is None else tuple(axes.words("only", only)),
        budget_s=parse_duration("--budget", budget),
        timeout=timeout,
        name=save,
        results=results,
        resume=resume,
        json=json,
    )
    scenarios = None
    if resume:
        allowed = ("save", "results", "resume", "budget", "timeout", "json")
        _refuse_beside(context, "a resumed run has its own scenario and advice", allowed)
    else:
        options = context.params
        scenarios = axes.scenarios(
            {**options, "workload": workload or [advice_command.DEFAULT_WORKLOAD]}
        )
    raise typer.Exit(advice_command.advise(scenarios, asked))


@app.command()
@with_axes
def train(
    context: typer.Context,
    workload: Workloads = None,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the training data.", metavar="N")
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            help="constant; by epochs step, plateau; by optimizer steps cosine (restarts, each "
            "period twice as long), one-cycle. Default: the workload's own.",
        ),
    ] = None,
    schedule_of: Annotated[
        str, typer.Option(help="What cosine and one-cycle set: lr, momentum, ...")
    ] = "lr",
    step_size: Annotated[int, typer.Option(help="step: epochs between two falls.")] = 1,
    gamma: Annotated[float, typer.Option(help="step, plateau: factor of a fall.")] = 0.1,
    plateau_patience: Annotated[
        int, typer.Option(help="plateau: epochs without a lower loss that are put up with.")
    ] = 2,
    first_period: Annotated[int, typer.Option(help="cosine: epochs of the first period.")] = 1,
    peak: Annotated[
        float | None,
        typer.Option(help="one-cycle: highest value. Default: the optimizer's own."),
    ] = None,
    patience: Annotated[
        int | None, typer.Option(help="Stop after so many epochs without a lower loss.")
    ] = None,
    validate: Annotated[
        bool, typer.Option(help="Evaluate on the validation data after each epoch.")
    ] = True,
    drop_last: Annotated[
        bool,
        typer.Option("--drop-last", help="Leave out what does not fill a batch at an epoch's end."),
    ] = False,
    checkpoint: Annotated[
        bool, typer.Option(help="Save the last and the best model after each epoch.")
    ] = True,
    timeout: Annotated[
        float | None,
        typer.Option(
            help="Seconds that start-up, or an epoch, may take. Default: 3600, or what a resumed "
            "training was begun with."
        ),
    ] = None,
    save: Save = None,
    results: Results = Path("results"),
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with the training of the run named by --save."),
    ] = False,
    download: Annotated[
        bool, typer.Option("--download", help="Let torchvision fetch datasets that are missing.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="As JSON, in seconds and bytes.")] = False,
) -> None:
    """Train a model for some epochs; losses, accuracies, speed and checkpoints of each.

    --no-grad and --inference-mode go for the validation. Exit code 0; 1: it failed, or cannot be
    done here; 2: bad usage; 130: interrupted, what is finished is saved.
    """
    from stepmark.cli import axes, train_command
    from stepmark.training import TrainPlan, named_schedule

    if resume:
        _refuse_beside(
            context,
            "a resumed training has its own axes and plan; leave it out, or train anew",
            ("epochs", "timeout", "save", "results", "resume", "download", "json"),
        )
        raise typer.Exit(
            train_command.resume(
                save, results, epochs=epochs, timeout=timeout, download=download, json=json
            )
        )
    if epochs is None:
        raise UsageError("no epochs: give --epochs N, such as --epochs 3")
    plan = TrainPlan(
        epochs=epochs,
        schedule=None if schedule is None else named_schedule(schedule),
        schedule_of=schedule_of,
        step_size=step_size,
        gamma=gamma,
        plateau_patience=plateau_patience,
        first_period=first_period,
        peak=peak,
        patience=patience,
        validate=validate,
        drop_last=drop_last,
        checkpoint=checkpoint,
        timeout=TrainPlan.timeout if timeout is None else timeout,
    )
    scenarios = axes.scenarios(context.params)
    raise typer.Exit(
        train_command.train(
            scenarios, plan, name=save, results=results, download=download, json=json
        )
    )


@app.command()
def calibrate(
    device: Annotated[str, typer.Option(help="Kinds of device, by commas, or auto: all.")] = "auto",
    timeout: Annotated[float, typer.Option(help="Seconds until a process is killed.")] = 120.0,
    results: Results = Path("results"),
    json: Annotated[bool, typer.Option("--json", help="As JSON, in SI units.")] = False,
) -> None:
    """Measure what this machine can attain at most, for later results to be held against.

    Exit code 0; 1: something could not be calibrated, all else is kept; 2: bad usage.
    """
    from stepmark.cli import calibrate_command

    raise typer.Exit(calibrate_command.calibrate(device, results, timeout, json=json))


@app.command()
def report(
    runs: Annotated[
        list[str] | None,
        typer.Argument(help="Runs to render. Default: the latest.", metavar="[RUN]..."),
    ] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder.")] = Path("reports"),
    results: Results = Path("results"),
) -> None:
    """Render runs as an HTML page, Markdown and plots (the same as python -m bench.report)."""
    from stepmark import report as room

    arguments = [*(runs or []), "-o", str(output), "--results", str(results)]
    raise typer.Exit(room.main(arguments))


def main() -> None:
    """Entry point."""
    sys.exit(guarded(_run))


def _run() -> int:
    app()
    return 0
