"""Pages that several files of tests look at."""

from __future__ import annotations

import pytest

from edge_tprune.report.report import write_report

HOSTILE = "<script>alert(1)</script>"

LATENCIES = {"1.0": 10.0, "0.9": 9.2, "0.8": 8.3, "0.65": 7.0, "0.5": 5.6}


@pytest.fixture(scope="session")
def page(profile_dir, tmp_path_factory):
    return write_report(profile_dir, tmp_path_factory.mktemp("report") / "report.html")


@pytest.fixture(scope="session")
def hostile(profiles, tmp_path_factory):
    info = profiles.info()
    info["bundle"]["model"]["name"] = HOSTILE
    info["bundle"]["method"]["name"] = '"><img src=x onerror=alert(1)>'
    info["budgets"][2]["name"] = "</svg></style><b onclick=x>$^{"
    info["environment"]["hostname"] = HOSTILE
    info["environment"]["cpu_model"] = "\x1b[31m" + HOSTILE
    info["budgets"][1]["accuracy"]["data"]["name"] = HOSTILE
    info["environment"]["versions"][HOSTILE] = HOSTILE
    lines = profiles.lines(info, {budget["name"]: 10.0 - index for index, budget in enumerate(info["budgets"])})
    lines.insert(-1, {"kind": "note", "t_ns": 98, "text": HOSTILE})
    sensors = {"<img src=x onerror=alert(1)>_power_mw": 1.0, "<!--<script>_power_mw": 2.0}
    lines.insert(-1, {"kind": "sensors", "t_ns": 50, "source": HOSTILE, "read_ns": 1, "values": sensors})
    root = tmp_path_factory.mktemp("hostile")
    path = profiles.write(root / HOSTILE.replace("/", "-"), info, lines)
    return write_report(path, root / "r.html")


@pytest.fixture(scope="session")
def two_methods(profiles, tmp_path_factory):
    """The widest page: two methods with power and energy, of which one is in doubt."""
    root = tmp_path_factory.mktemp("two")
    for method, scale in (("zero_tprune", 1.0), ("evit", 0.97)):
        info = profiles.info(method)
        latencies = {name: ms if name == "1.0" else ms * scale for name, ms in LATENCIES.items()}
        summary = profiles.summary(info, scale)
        power = summary["budgets"]["0.65"]["power"]["mean_w"]
        power["high"] = power["value"] * 1.3  # an interval that ± would mislead about
        summary["budgets"]["0.5"]["verdict"] = {"status": "suspect", "reasons": [{"code": "x", "text": "throttled"}]}
        profiles.write(root / "p" / method, info, profiles.lines(info, latencies), summary)
    return write_report(root / "p", root / "r.html")
