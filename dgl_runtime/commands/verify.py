"""dgl-verify: is a bundle whole, and does this machine give its results?"""

import json
from dataclasses import asdict
from pathlib import Path

import click

from dgl_runtime.command import Command
from dgl_runtime.commands.options import device_option, engine_option, threads_option

_INPUTS_CHECKED = "Texts and pictures become the tokens and pixels the model was exported with."
_INPUTS_UNKNOWN = (
    "Exported before texts and pictures could be checked; export it again to have that."
)


@click.command(cls=Command)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@device_option
@engine_option
@threads_option
def verify(bundle: Path, as_json: bool, device: str, engine: str, threads: int) -> None:
    """Check a bundle: every file against its hash, then its golden inputs on this machine.

    Golden texts and a picture must become the tokens and pixels of the export, and these its embeddings.

    Example: dgl-verify bundle --device cuda --engine onnx
    """
    from dgl_runtime.bundle.manifest import GRAPHS
    from dgl_runtime.encoder.encoder import Encoder
    from dgl_runtime.encoder.input_check import check_inputs
    from dgl_runtime.encoder.self_check import check_graph

    encoder = Encoder(bundle, device=device, engine=engine, threads=threads)
    opened = encoder.bundle
    for name in opened.manifest.files:
        opened.path(name)
    check_inputs(opened, encoder.tokenizer)
    rows = []
    for graph in GRAPHS:
        chosen = encoder.chosen(graph)
        difference = check_graph(chosen.engine, opened, graph)
        rows.append(
            {
                "graph": graph,
                "engine": chosen.candidate.engine,
                "device": chosen.candidate.device,
                "description": chosen.engine.description,
                "why": chosen.why,
                **asdict(difference),
            }
        )
    if as_json:
        found = {"bundle": str(bundle), "id": opened.id, "files": len(opened.manifest.files)}
        click.echo(json.dumps({**found, "graphs": rows}, indent=2))
        return
    click.echo(f"{click.format_filename(bundle)}: {len(opened.manifest.files)} files intact.")
    click.echo(_INPUTS_CHECKED if opened.golden.raw is not None else _INPUTS_UNKNOWN)
    for row in rows:
        click.echo(
            f"{row['graph']} in {row['description']} ({row['why']}): differ by "
            f"{row['max_abs']:.1e}, cosine {row['min_cosine']:.6f}, from the exporting machine."
        )
