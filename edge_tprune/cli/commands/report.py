"""`edge-tprune report`: one page for people."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edge_tprune.cli.common import print_json, say
from edge_tprune.cli.options import Json, Limits, Minimize, ProfilesArgument, with_limits
from edge_tprune.cli.root import app


@app.command(
    epilog="Examples: edge-tprune report profiles/RUN --out report.html · edge-tprune report profiles/RUN --picture figure.svg "
    "--picture tokens=tokens.png --max-top1-drop 2 · edge-tprune report profiles/RUN --bundle bundles/NAME --images photos"
)
@with_limits
def report(
    profiles: ProfilesArgument,
    page: Annotated[Path, typer.Option("--out", help="The HTML file to write.")] = Path("report.html"),
    picture: Annotated[
        list[str] | None,
        typer.Option(
            "--picture",
            metavar="[NAME=]FILE",
            help="Also draw an .svg or .png for paper; may be repeated. NAME: p95 (accuracy against p95 latency, the default), "
            "energy, memory, latency, tokens or timeline.",
        ),
    ] = None,
    bundle: Annotated[Path | None, typer.Option(help="With --images: the bundle that was profiled.")] = None,
    images: Annotated[
        Path | None, typer.Option(help="With --bundle: show what each stage keeps of these images (a file or a directory).")
    ] = None,
    weights: Annotated[str | None, typer.Option(help="With --bundle: the model's weights, as for build.")] = None,
    *,
    limits: Limits,
    objective: Minimize = None,
    json: Json = False,
) -> None:
    """Write one self-contained HTML page: the answer, the table, the plots, the environment, how to reproduce."""
    from edge_tprune.errors import UserError
    from edge_tprune.report.report import write_report

    if (bundle is None) != (images is None):
        raise UserError("--bundle and --images go together: the bundle says which tokens stay, the images what of")
    if weights is not None and bundle is None:
        raise UserError("--weights is for --bundle and --images")
    pictures = [_named(text) for text in picture or []]
    samples: list[dict[str, Any]] = []
    if bundle is not None and images is not None:
        from edge_tprune.cli.views import need_host

        need_host()
        from edge_tprune.export.explain import explain_bundle
        from edge_tprune.report.pictures import described

        samples = [described(explanation, photo=True) for explanation in explain_bundle(bundle, images, weights)]
    written = write_report(profiles, page, constraints=limits, objective=objective, pictures=pictures, samples=samples)
    for _, file in pictures:
        say(f"drew {file}")
    if json:
        print_json({"report": str(written), "pictures": {name: str(file) for name, file in pictures}})
    else:
        print(written)


def _named(text: str) -> tuple[str, Path]:
    """ "tokens=t.svg" -> ("tokens", t.svg); a file alone is the first picture there is."""
    from edge_tprune.report.report import PICTURES

    name, sign, file = text.partition("=")
    return (name, Path(file)) if sign else (PICTURES[0], Path(text))
