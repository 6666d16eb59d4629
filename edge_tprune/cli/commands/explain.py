"""`edge-tprune explain`: what a method does to one image."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edge_tprune.cli.model_options import ModelChoice, Plugins, load_plugins, with_model_options
from edge_tprune.cli.options import Json
from edge_tprune.cli.parsing import parse_list, parse_pairs
from edge_tprune.cli.root import command
from edge_tprune.cli.schedules import read_schedules
from edge_tprune.cli.terminal import print_json, print_note, print_table
from edge_tprune.errors import UserError

if TYPE_CHECKING:
    from edge_tprune.export.explain import Explanation


@command(
    "edge-tprune explain reference:17 --methods zero_tprune,evit,tome",
    "edge-tprune explain cat.jpg --model deit_tiny_patch16_224 --method bat",
    "edge-tprune explain cat.jpg --methods tome,vote_mix --out explain.html",
    "edge-tprune explain reference:17 --bundle bundles/ref --budgets 0.5",
    kept="nothing was written",
)
@with_model_options
def explain(
    image: Annotated[
        str, typer.Argument(metavar="IMAGE", help="An image file, or 'reference:17' for a canvas of the built-in task.")
    ],
    choice: ModelChoice,
    model: Annotated[
        str,
        typer.Option(
            help="'reference', a timm model name, or 'local-dir:DIRECTORY' (a downloaded Hugging Face Hub repository)."
        ),
    ] = "reference",
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            "--methods",
            help="Methods to draw, comma-separated; zero_tprune, or the schedule file's, by default.",
            show_default=False,
        ),
    ] = None,
    budgets: Annotated[
        str | None,
        typer.Option(
            help="Shares of the unpruned MACs, comma-separated; 0.8,0.65,0.5 by default, none with --schedule.",
            show_default=False,
        ),
    ] = None,
    schedule: Annotated[
        list[str] | None,
        typer.Option(
            help="Tokens after each block, comma-separated (may be repeated), or a file that `search` wrote. In addition to --budgets."
        ),
    ] = None,
    blocks: Annotated[
        str | None, typer.Option(help="Blocks that remove tokens, counted from 1; the method's own by default.")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="An option of the methods that have it, name=value; may be repeated.")
    ] = None,
    plugin: Plugins = None,
    bundle: Annotated[
        Path | None,
        typer.Option(help="Draw what the budgets of this bundle do, instead of --model, --method, --schedule and --option."),
    ] = None,
    picture: Annotated[
        Path, typer.Option("--out", help="The file to write: a .png picture, or a self-contained .html page.")
    ] = Path("explain.png"),
    json: Json = False,
) -> None:
    """Draw which patches of an image every stage keeps, drops or merges, one row per method and budget."""
    from edge_tprune.cli.model_views import require_host

    require_host()
    from edge_tprune.bundle.bundle import Bundle
    from edge_tprune.export.explain import describe_turn, explain_budgets, load_model_of, open_image
    from edge_tprune.export.explain import explain as follow
    from edge_tprune.models.reference import NAME as REFERENCE
    from edge_tprune.reduction import registry
    from edge_tprune.report.pictures import check_place

    if picture.exists() and Path(image).exists() and picture.samefile(image):
        raise UserError(f"--out {picture} is the image that is explained: give another name")
    check_place(picture)
    load_plugins(plugin)
    if turned := describe_turn(image):
        print_note(f"note: {turned}")
    if bundle is not None:
        given: dict[str, object] = {"--method": method, "--schedule": schedule, "--blocks": blocks, "--option": option}
        given |= {f"--{name.replace('_', '-')}": value for name, value in choice.given.items() if name != "weights"}
        given["--model"] = "" if model == REFERENCE else model
        if double := next((name for name, value in given.items() if value), None):
            raise UserError(f"{double} is not for --bundle, whose budgets are built: leave one of the two out")
        opened = Bundle.open(bundle, verify=False)
        names = parse_list(budgets, str, "--budgets") if budgets is not None else None
        loaded = load_model_of(opened, choice.weights)
        _show(explain_budgets(loaded, opened, open_image(image), Path(image).name, names), picture, json)
        return
    schedules = read_schedules(schedule)
    if schedules.own:
        raise UserError("the schedule file has budgets of several methods or options: give the tokens after each block instead")
    names = list(dict.fromkeys(parse_list(schedules.choose_method(method, "zero_tprune"), str, "--methods")))
    for name in names:
        registry.method(name)  # before a model is loaded
    shares = budgets if budgets is not None else ("" if schedule else "0.8,0.65,0.5")
    if not shares.strip() and not schedule:
        raise UserError("there is nothing to draw: give --budgets or --schedule")
    wanted = parse_list(shares, float, "--budgets") if shares.strip() else []
    if blocks and all(share == 1 for share in wanted):
        raise UserError(
            "--blocks is for pruning to a share of MACs, and no such share is asked for: add --budgets 0.65, or leave --blocks out"
        )
    pixels = open_image(image)
    explanation = follow(
        choice.load(model),
        pixels,
        names,
        wanted,
        schedules=[*(tokens for _, tokens in schedules.typed), *schedules.found.values()],
        name=Path(image).name,
        blocks=parse_list(blocks, int, "--blocks") if blocks else None,
        options={**{key: str(value) for key, value in schedules.options.items()}, **parse_pairs(option or [], "--option")},
    )
    _show(explanation, picture, json)


def _show(explanation: Explanation, picture: Path, json: bool) -> None:
    from edge_tprune.cli.model_views import explanation_table
    from edge_tprune.report.pictures import write

    if not explanation.rows:
        raise UserError("there is nothing to draw: none of these budgets removes tokens. Name some with --budgets")
    write(explanation, picture)
    print_note(f"drew {picture}")
    if json:
        print_json(explanation.to_json() | {"out": str(picture)})
    else:
        print_table(explanation_table(explanation))
