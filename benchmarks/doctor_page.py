"""The doctor's findings on one screen."""

from benchmarks.doctor import Diagnosis, EngineReport, Trial
from benchmarks.report import Table


def page(diagnosis: Diagnosis) -> str:
    """The machine, a table of engines, why some do not work, and what to install."""
    parts = ["\n".join(_machine(diagnosis)), _table(diagnosis)]
    if reasons := _reasons(diagnosis):
        parts.append("\n".join(["What does not work:", *reasons]))
    if remedies := _remedies(diagnosis):
        parts.append("\n".join(["To add:", *remedies]))
    return "\n\n".join(parts)


def _machine(diagnosis: Diagnosis) -> list[str]:
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


def _table(diagnosis: Diagnosis) -> str:
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
    return Table(title, ["engine", "version", *tasks], rows, text_columns=2).to_markdown()


def _cell(trial: Trial) -> str:
    if not trial.works or trial.error is None:
        return "no"
    if trial.time_ms is None or trial.min_cosine is None:
        return f"{trial.error:.0e}"
    return f"{trial.time_ms:.1f} ms, cosine {trial.min_cosine:.6f}"


def _reasons(diagnosis: Diagnosis) -> list[str]:
    """One line for each reason, with all that it keeps from working."""
    found: dict[str, list[str]] = {}
    for report in diagnosis.engines:
        for trial in report.trials:
            if report.version and not trial.works:
                what = f"{report.engine} on {report.device}"
                tasks = found.setdefault(f"{what}: {trial.reason}", [])
                tasks.append(trial.task)
    return [f"- {', '.join(tasks)} in {reason}" for reason, tasks in found.items()]


def _remedies(diagnosis: Diagnosis) -> list[str]:
    found: dict[str, list[EngineReport]] = {}
    for report in diagnosis.engines:
        if report.remedy:
            found.setdefault(report.remedy, []).append(report)
    return [
        f"- {', '.join(f'{one.engine} on {one.device}' for one in reports)}: {remedy}"
        for remedy, reports in found.items()
    ]
