"""An explanation as one PNG, a row per method and budget, or as a web page that needs nothing else."""

from __future__ import annotations

import base64
import io
import textwrap
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from edge_tprune.errors import UserError
from edge_tprune.files import check_own, write_bytes, write_text
from edge_tprune.report.drawing import matplotlib_style
from edge_tprune.report.page import MADE_BY, OWN_FILES, render
from edge_tprune.report.panels import LINE, VEIL, enlarged, panel

if TYPE_CHECKING:
    from edge_tprune.export.explain import Explanation, Fates

SUFFIXES = (".png", ".html")

_PHOTO_PIXELS = 288  # a side at most where there are many panels: twelve to a patch of DeiT's
_INK, _SOFT, _OTHER = "#1f2328", "#57606a", "#a84300"  # text; beside the point; another class than the unpruned network's
_TEMPLATE = Path(__file__).with_name("explain.html")


def write(explanation: Explanation, out: Path) -> None:
    """Draws to `out`, atomically: a PNG, or a web page that needs nothing else.

    Raises:
        UserError: another suffix, a package that is missing, a place that cannot be written.
    """
    check_place(out)
    if out.suffix.lower() == ".html":
        write_text(out, page(explanation))
    else:
        write_bytes(out, picture(explanation))


def check_place(out: Path) -> None:
    """Refuses a file that no explanation can be drawn to.

    Raises:
        UserError: a name that ends otherwise, or a file there that is no explanation.
    """
    if out.suffix.lower() not in SUFFIXES:
        raise UserError(f"cannot draw {out.name}: the name must end in {' or '.join(SUFFIXES)}")
    check_own(out, OWN_FILES[out.suffix.lower()], "an explanation")


def picture(explanation: Explanation) -> bytes:
    """The whole comparison as one PNG: a row per method and budget, a column for the image and for each stage."""
    rows = explanation.rows
    photograph = enlarged(explanation.pixels)
    height, width = photograph.shape[:2]
    # All in inches, from the top left corner, so that rows look the same however many there are.
    panel_width, gap, label, above, below, foot = 1.72, 0.08, 1.3, 0.2, 0.24, 0.28
    dpi = width / panel_width  # panels stand in the picture pixel by pixel
    panel_height = height / dpi
    columns = max(3, *(1 + len(row.shown) for row in rows))  # room for the title, even where nothing is removed
    title = f"{explanation.image} · {explanation.model} · unpruned: {explanation.unpruned}"
    heading = textwrap.wrap(title, int(14 * columns * panel_width))
    head = 0.16 + 0.14 * len(heading)
    size = (label + columns * (panel_width + gap), head + len(rows) * (above + panel_height + below) + foot)
    style: Any = {"font.family": "sans-serif", "font.size": 8, "text.color": _INK, "text.parse_math": False}
    with matplotlib_style(style), warnings.catch_warnings():
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.patches import Rectangle

        warnings.filterwarnings("ignore", "Glyph .* missing")  # a file's name may be in any script
        figure = Figure(figsize=size, dpi=dpi)
        FigureCanvasAgg(figure)

        def text(x: float, y: float, words: str, **how: Any) -> Any:
            return figure.text(x / size[0], 1 - y / size[1], words, **how)

        def show(x: float, y: float, array: np.ndarray, title: str, caption: str) -> None:
            figure.figimage(array, round(x * dpi), round((size[1] - y - panel_height) * dpi), origin="upper")
            text(x + panel_width / 2, y - 0.04, title, ha="center", va="bottom")
            text(x + panel_width / 2, y + panel_height + 0.04, caption, ha="center", va="top", fontsize=7, color=_SOFT)

        text(label, 0.09, "\n".join(heading), va="top")
        for number, row in enumerate(rows):
            y = head + above + number * (above + panel_height + below)
            same = row.prediction.index == explanation.unpruned.index
            middle: Any = {"x": label - 0.12, "ha": "right"}
            text(y=y + panel_height / 2 - 0.22, words=row.method, va="center", fontsize=9, fontweight="bold", **middle)
            text(y=y + panel_height / 2, words=f"budget {row.label}", va="center", **middle)
            words = textwrap.fill(str(row.prediction), 20)
            text(y=y + panel_height / 2 + 0.14, words=words, va="top", fontsize=7, color=_SOFT if same else _OTHER, **middle)
            if len(row.shown) < len(row.stages):
                words = f"{len(row.shown)} of {len(row.stages)} stages"
                text(y=y + panel_height, words=words, va="bottom", fontsize=7, color=_SOFT, **middle)
            show(label, y, photograph, "input", f"{explanation.patches} patches")
            for place, stage in enumerate(row.shown, 1):
                array = panel(explanation.pixels, explanation.grid, stage)
                show(label + place * (panel_width + gap), y, array, _heading(stage, explanation), str(stage))
        x, y = label, size[1] - 0.16
        for veiled, words in ((True, "dropped"), (False, "merged: its token's mean colour, bordered where the token ends")):
            if any(stage.dropped if veiled else stage.merged for row in rows for stage in row.stages):
                corner = (x / size[0], 1 - (y + 0.055) / size[1])
                fill, edge = (VEIL / 255, LINE / 255) if veiled else ("#d9c7a0", "#E69F00")
                how: Any = {"hatch": "////", "linewidth": 0} if veiled else {"linewidth": 1.4}
                figure.add_artist(Rectangle(corner, 0.11 / size[0], 0.11 / size[1], facecolor=fill, edgecolor=edge, **how))
                text(x + 0.19, y, words, va="center", fontsize=7, color=_SOFT)
                x += 0.85
        stream = io.BytesIO()
        figure.savefig(stream, format="png", dpi="figure", facecolor="white", metadata={"Software": MADE_BY})
    return stream.getvalue()


def page(explanation: Explanation) -> str:
    """The comparison as one HTML page with the panels inside, each with a text for people who cannot see it."""
    return render(
        _TEMPLATE,
        title=f"Tokens of {explanation.image}",
        model=explanation.model,
        patches=explanation.patches,
        prefix=explanation.prefix_tokens,
        shown=describe_explanation(explanation),
    )


def describe_explanation(explanation: Explanation, photo: bool = False) -> dict[str, object]:
    """What a page shows of an explanation: `image`, `unpruned`, `input` and `rows` with their `panels` (macros in panels.html).

    Args:
        explanation: of one image.
        photo: panels small and as JPEG, for pages with many images.
    """
    url = partial(_data_url, photo=photo)
    rows = [
        {
            "title": row.title,
            "options": " ".join(f"{key}={value}" for key, value in row.options.items()),
            "share": f"{100 * row.share:.1f}",
            "prediction": str(row.prediction),
            "same": row.prediction.index == explanation.unpruned.index,
            "stages": row.stages,
            "panels": [
                {
                    "source": url(panel(explanation.pixels, explanation.grid, stage)),
                    "alt": f"{explanation.image} after block {stage.block} of {row.title}: of {explanation.patches} patches {stage}",
                    "title": _heading(stage, explanation),
                    "caption": str(stage),
                }
                for stage in row.shown
            ],
        }
        for row in explanation.rows
    ]
    source = url(enlarged(explanation.pixels))
    return {"image": explanation.image, "unpruned": str(explanation.unpruned), "input": source, "rows": rows}


def _heading(stage: Fates, explanation: Explanation) -> str:
    return f"block {stage.block}: {stage.tokens - explanation.prefix_tokens} patch tokens"


def _data_url(array: np.ndarray, photo: bool = False) -> str:
    stream = io.BytesIO()
    image = Image.fromarray(array)
    if photo:
        image.thumbnail((_PHOTO_PIXELS, _PHOTO_PIXELS))
        image.save(stream, format="JPEG", quality=80, optimize=True)
    else:
        image.save(stream, format="PNG", optimize=True)
    kind = "jpeg" if photo else "png"
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"
