"""`edge-tprune report`: one page for people."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edge_tprune.cli.options import EqualWithin, Json, Limits, Minimize, ProfilesArgument, with_limits
from edge_tprune.cli.root import command
from edge_tprune.cli.terminal import print_json, print_note, print_text


@command(
    "edge-tprune report profiles/RUN --out report.html",
    "edge-tprune report profiles/RUN --picture figure.svg --max-top1-drop 2",
    "edge-tprune report profiles/RUN --picture tokens=tokens.png",
    "edge-tprune report profiles/RUN --bundle bundles/NAME --images photos",
    kept="nothing was written",
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
            help="Also draw an .svg or .png file; may be repeated. NAME: accuracy (against latency, the default), p50, p95, "
            "energy or memory (accuracy against each), latency, tokens or timeline.",
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
    equal_within: EqualWithin = None,
    json: Json = False,
) -> None:
    """Write one self-contained HTML page: the chosen budget, tables, plots, the environment, and how to reproduce it."""
    from edge_tprune.analysis.contrast import WITHIN_RUN, EqualityMargin
    from edge_tprune.analysis.loading import load_rows
    from edge_tprune.bundle.bundle import Bundle
    from edge_tprune.errors import UserError
    from edge_tprune.report.report import Request, write_report

    if page.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--out {page}: the report is a file whose name ends in .html")
    if (bundle is None) != (images is None):
        raise UserError("--bundle and --images go together: the bundle says which tokens stay, the images what of")
    if weights is not None and bundle is None:
        raise UserError("--weights is for --bundle and --images")
    pictures = [_parse_picture(text) for text in picture or []]
    places = [page.resolve(), *(file.resolve() for _, file in pictures)]
    if twice := next((place for place in places if places.count(place) > 1), None):
        raise UserError(f"{twice} is asked for twice: give each picture a name of its own")
    rows = load_rows(profiles)
    samples: list[dict[str, object]] = []
    if bundle is not None and images is not None:
        from edge_tprune.cli.model_views import require_host

        require_host()
        if Bundle.open(bundle).manifest.fingerprint not in {row.profile.document.bundle.fingerprint for row in rows}:
            raise UserError(f"bundle {bundle} is not what was profiled: name the bundle of {', '.join(map(str, profiles))}")
        from edge_tprune.export.explain import explain_bundle
        from edge_tprune.report.pictures import describe_explanation

        samples = [describe_explanation(explanation, photo=True) for explanation in explain_bundle(bundle, images, weights)]
    margin = EqualityMargin.parse(equal_within, WITHIN_RUN) if equal_within is not None else WITHIN_RUN
    request = Request(limits, objective, margin, samples)
    written = write_report(rows, page, request, pictures)
    for _, file in pictures:
        print_note(f"drew {file}")
    if json:
        print_json({"report": str(written), "pictures": [{"name": name, "file": str(file)} for name, file in pictures]})
    else:
        print_text(str(written))


def _parse_picture(text: str) -> tuple[str, Path]:
    """ "tokens=t.svg" -> ("tokens", t.svg); a file alone is the first picture there is."""
    from edge_tprune.report.figures import PICTURES

    name, sign, file = text.partition("=")
    return (name, Path(file)) if sign else (PICTURES[0], Path(text))
