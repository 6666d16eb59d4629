from __future__ import annotations

import io
import subprocess
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib import figure
from PIL import Image

from edge_tprune.analysis.choice import choose
from edge_tprune.analysis.loading import load_rows
from edge_tprune.errors import UserError
from edge_tprune.report import chart, plot
from edge_tprune.report.timeline import Lane, Timeline, Trace, TurnSpan


def _scatter(rows, chosen=None):
    return plot.scatter_figure(chart.make_scatter(rows, "p95_ms", chosen))


def _timeline(count=300):
    seconds = np.linspace(0, 60, count)
    power = Trace("total", seconds, 5 + np.sin(seconds), 4 + np.sin(seconds), 6 + np.sin(seconds))
    turns = tuple(TurnSpan(10.0 * i, 10.0 * i + 8, i // 2, "ab"[i % 2], 5.0 + i) for i in range(6))
    return Timeline(("a", "b"), turns, (Lane("power", "W", (power,), 0),), 60.0, ("clocks",), count)


FIGURES = [
    _scatter,
    lambda rows: plot.lines_figure(chart.make_token_lines(rows)),
    lambda rows: plot.lines_figure(chart.make_distribution(rows)),
    lambda rows: plot.timeline_figure(_timeline()),
]


@pytest.fixture(scope="module")
def rows(profile_dir):
    return load_rows(profile_dir)


def _texts(figure):
    import matplotlib.text

    figure.draw_without_rendering()
    return [text.get_text() for text in figure.findobj(matplotlib.text.Text)]


def test_budgets_latency_and_accuracy_are_where_they_belong(rows):
    figure = _scatter(rows, choose(rows).row)
    (axes,) = figure.axes
    assert axes.get_xlabel() == "p95 latency (ms)"
    assert axes.get_ylabel() == "top-1 (%)"
    texts = _texts(figure)
    for name in ("unpruned", "0.9", "0.8", "0.65", "0.5", "Pareto front"):
        assert name in texts
    points = {(float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in axes.lines if len(line.get_xdata()) == 1}
    assert {(row.value("p95_ms"), row.value("top1_percent")) for row in rows} <= points


def test_whiskers_reach_to_the_ends_that_are_known(rows):
    known = chart.make_scatter(rows, "p95_ms").points[3]
    (axes,) = _scatter(rows).axes
    reached = {(float(line.get_xdata()[-1]), float(line.get_ydata()[-1])) for line in axes.lines if len(line.get_xdata()) == 2}
    assert {(end, known.y) for end in known.x_range if end is not None} <= reached
    assert {(known.x, end) for end in known.y_range if end is not None} <= reached


def test_tokens_step_down_after_their_blocks(rows):
    (axes,) = plot.lines_figure(chart.make_token_lines(rows)).axes
    line = axes.lines[3]
    assert list(line.get_xdata()) == list(range(13))
    assert list(line.get_ydata()) == [197, *rows[3].schedule]
    assert line.get_drawstyle() == "steps-post"
    assert axes.get_ylim()[0] == 0


def test_distributions_rise_to_all(rows):
    (axes,) = plot.lines_figure(chart.make_distribution(rows)).axes
    for line in axes.lines[: len(rows)]:
        assert list(line.get_xdata()) == sorted(line.get_xdata())
        assert line.get_ydata()[-1] == 100


def test_several_methods_have_colours_of_their_own(profiles, tmp_path):
    profiles.write(tmp_path / "a")
    profiles.write(tmp_path / "b", profiles.info("evit"))
    both = load_rows(tmp_path)
    assert {"evit", "zero_tprune"} <= set(_texts(_scatter(both)))
    assert "evit 0.5" in _texts(plot.lines_figure(chart.make_token_lines(both)))


def test_a_timeline_has_a_lane_per_kind_and_shades_every_turn():
    data = _timeline()
    figure = plot.timeline_figure(data)
    latency, power = figure.axes
    assert power.get_ylabel() == "power\n(W)"
    assert power.get_xlabel() == "time (s)"
    assert {"a", "b", "total"} <= set(_texts(figure))
    assert len(latency.patches) == len(power.patches) == len(data.turns)
    assert latency.patches[0].get_facecolor() != latency.patches[1].get_facecolor()
    long = Timeline(data.budgets, data.turns, data.lanes, 30_000.0, (), 0)
    assert plot.timeline_figure(long).axes[-1].get_xlabel() == "time (h)"


@pytest.mark.parametrize("draw", FIGURES)
def test_saved_whole_and_the_same_each_time(draw, rows, tmp_path):
    first, second = plot.save(draw(rows), tmp_path / "a.svg"), plot.save(draw(rows), tmp_path / "b.svg")
    assert first.read_bytes() == second.read_bytes()
    assert b"<dc:date>" not in first.read_bytes()
    ElementTree.fromstring(first.read_bytes())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.svg", "b.svg"]


def test_png_too(rows, tmp_path):
    path = plot.save(plot.lines_figure(chart.make_token_lines(rows)), tmp_path / "new" / "tokens.png")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_other_kinds_are_refused(rows, tmp_path):
    with pytest.raises(UserError, match=r"must end in \.svg or \.png"):
        plot.save(plot.lines_figure(chart.make_token_lines(rows)), tmp_path / "tokens.gif")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("draw", FIGURES)
def test_inline_svg_takes_the_page_s_colours_and_keeps_to_itself(draw, rows):
    one, two = plot.inline_svg(draw(rows), 'a "title" <b>', "one"), plot.inline_svg(draw(rows), "t", "two")
    root = ElementTree.fromstring(one)
    assert root.get("aria-label") == 'a "title" <b>'
    assert root.get("width") is None
    assert root.get("viewBox")
    assert "var(--ink" in one
    assert plot.INK not in one.replace(f"var(--ink, {plot.INK})", "")
    ids = [{element.get("id") for element in ElementTree.fromstring(text).iter() if element.get("id")} for text in (one, two)]
    assert ids[0]
    assert not ids[0] & ids[1]
    for reference in (element.get("{http://www.w3.org/1999/xlink}href") for element in root.iter()):
        assert reference is None or reference.removeprefix("#") in ids[0]


def test_names_are_text_not_markup_or_mathematics(profiles):
    hostile = ["$\\frac{", "<script>x</script>", "$a$", "a & b"]
    rows = [profiles.row(name, p95_ms=1.0 + index, top1_percent=90.0 + index) for index, name in enumerate(hostile)]
    svg = plot.inline_svg(_scatter(rows), "t", "p")
    assert "<script" not in svg
    ElementTree.fromstring(svg)


def test_pyplot_and_global_settings_stay_untouched(profile_dir):
    code = (
        "import sys; from pathlib import Path; import matplotlib; before = matplotlib.rcParams.copy()\n"
        "from edge_tprune.analysis import loading\nfrom edge_tprune.report import chart, plot\n"
        f"plot.save(plot.lines_figure(chart.make_token_lines(loading.load_rows({str(profile_dir)!r}))), Path(sys.argv[1]))\n"
        "assert matplotlib.rcParams.copy() == before; assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(profile_dir.parent / "x.svg")], check=True)


def test_without_matplotlib_the_error_says_what_to_install(profile_dir):
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from edge_tprune.analysis import loading\nfrom edge_tprune.report import chart, plot\n"
        "from edge_tprune.errors import UserError\n"
        f"rows = loading.load_rows({str(profile_dir)!r})\n"
        "try: plot.lines_figure(chart.make_token_lines(rows))\n"
        "except UserError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "edge-tprune[analysis]" in done.stdout


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_only_an_earlier_picture_is_replaced(rows, tmp_path, ending):
    file = tmp_path / f"a.{ending}"
    for _ in range(2):
        plot.save(plot.lines_figure(chart.make_token_lines(rows)), file)
    photo, own = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (8, 8)).save(photo, "png")
    figure.Figure().savefig(own, format=ending, metadata={"Title": "board tests with edge-tprune"})
    for content in (photo.getvalue(), own.getvalue(), b"<svg><!-- drawn by hand --></svg>"):
        file.write_bytes(content)
        with pytest.raises(UserError, match="is not a picture of edge-tprune's, and would be lost"):
            plot.save(plot.lines_figure(chart.make_token_lines(rows)), file)
        assert file.read_bytes() == content
