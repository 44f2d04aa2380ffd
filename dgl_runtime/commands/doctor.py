"""dgl-doctor: which engines work on this machine, and what the others need, on one screen."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dgl_runtime.command import Command, fail
from dgl_runtime.commands.options import threads_option
from dgl_runtime.tables.markdown import markdown_table

if TYPE_CHECKING:
    from dgl_runtime.encoder.diagnosis import Diagnosis, EngineReport, Trial


@click.command(cls=Command)
@click.argument("bundle", required=False, type=click.Path(path_type=Path))
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write this file.")
@threads_option
def doctor(bundle: Path | None, json_file: Path | None, threads: int) -> None:
    """Say which engines work on this machine, and what the others need; with BUNDLE, how fast it is.

    Exit code 0 if at least one engine works. Attach the JSON file to a report of a problem.

    Example: dgl-doctor bundle --json doctor.json
    """
    from dgl_runtime.bundle.folder import Bundle
    from dgl_runtime.encoder.diagnosis import diagnose

    diagnosis = diagnose(None if bundle is None else Bundle(bundle), threads=threads)
    click.echo(page(diagnosis))
    if json_file is not None:
        json_file.write_text(json.dumps(diagnosis.to_json(), indent=2) + "\n", encoding="utf-8")
        click.echo(f"Written: {json_file}", err=True)
    if not diagnosis.works:
        fail("no engine works here; above it says why, and what to install.")


def page(diagnosis: "Diagnosis") -> str:
    """The machine, a table of engines, why some do not work, and what to install."""
    parts = ["\n".join(_machine(diagnosis)), _table(diagnosis)]
    if reasons := _reasons(diagnosis):
        parts.append("\n".join(["What does not work:", *reasons]))
    if remedies := _remedies(diagnosis):
        parts.append("\n".join(["To add:", *remedies]))
    return "\n\n".join(parts)


def _machine(diagnosis: "Diagnosis") -> list[str]:
    machine, versions = diagnosis.machine, diagnosis.machine.versions
    ours = versions.get("dgl-retrieval", "from source")
    abilities = diagnosis.abilities
    if abilities is None:
        has = "abilities unknown"
    else:
        has = ", ".join(f"{name} {'yes' if there else 'no'}" for name, there in abilities.items())
    gpus = [
        f"{gpu.name}, compute capability {gpu.compute_capability}, driver {gpu.driver}"
        for gpu in diagnosis.gpus
    ]
    cuda = f", CUDA up to {diagnosis.cuda}" if diagnosis.cuda else ""
    return [
        f"dgl-retrieval {ours}, Python {machine.python}, {machine.system}",
        f"CPU: {machine.cpu}, {machine.cores} cores; {has}",
        f"GPU: {'; '.join(gpus) + cuda if gpus else 'none that an NVIDIA driver lists'}",
    ]


def _table(diagnosis: "Diagnosis") -> str:
    tasks = [trial.task for trial in diagnosis.engines[0].trials]
    title = "Largest error of a small graph" if diagnosis.bundle is None else "Self-check and time"
    rows = [
        [
            f"{report.engine} on {report.device}",
            report.version or "not installed",
            *(_cell(trial) if report.version else "-" for trial in report.trials),
        ]
        for report in diagnosis.engines
    ]
    return markdown_table(title, ["engine", "version", *tasks], rows, text_columns=2)


def _cell(trial: "Trial") -> str:
    if not trial.works or trial.error is None:
        return "no"
    if trial.time_ms is None or trial.min_cosine is None:
        return f"{trial.error:.0e}"
    return f"{trial.time_ms:.1f} ms, cosine {trial.min_cosine:.6f}"


def _reasons(diagnosis: "Diagnosis") -> list[str]:
    """One line for each reason, with all that it keeps from working."""
    found: dict[str, list[str]] = {}
    for report in diagnosis.engines:
        for trial in report.trials:
            if report.version and not trial.works:
                what = f"{report.engine} on {report.device}"
                tasks = found.setdefault(f"{what}: {trial.reason}", [])
                tasks.append(trial.task)
    return [f"- {', '.join(tasks)} in {reason}" for reason, tasks in found.items()]


def _remedies(diagnosis: "Diagnosis") -> list[str]:
    found: dict[str, list[EngineReport]] = {}
    for report in diagnosis.engines:
        if report.remedy:
            found.setdefault(report.remedy, []).append(report)
    return [
        f"- {', '.join(f'{one.engine} on {one.device}' for one in reports)}: {remedy}"
        for remedy, reports in found.items()
    ]
