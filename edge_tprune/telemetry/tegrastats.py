"""tegrastats: NVIDIA's program on every Jetson, whose lines change from release to release.

The order of words is free and new ones appear: what is known is taken, the rest is left alone. Known shapes:

    RAM 6185/7620MB (lfb 8x2MB)   SWAP 851/3810MB (cached 1MB)   IRAM 0/252kB(lfb 252kB)
    CPU [15%@729,off,11%@729]     CPU [15%,11%]@1479             cpu [0%,off]@-1
    EMC_FREQ 43%@2133             GR3D_FREQ 62%  62%@306  63%@[621]  12%@[1300,1300]  @[1574,1574,1574]
    NVDEC off   VIC_FREQ 729   NVENC 716   APE 174   MTS fg 0% bg 0%   PVA0_FREQ off   EDP limit 0
    gpu@43C   CPU@-256C   cpu@52.968C/52.968C
    VDD_IN 4067/4067   VDD_IN 12479mW/12479mW   VIN 21000mW/21000mW/21000mW      (now, mean, and in JetPack 7 a third)
"""

from __future__ import annotations

import re
import shutil
import time

from edge_tprune.telemetry.boards import Board
from edge_tprune.telemetry.gpu import CLOCK as GPU_CLOCK
from edge_tprune.telemetry.gpu import EMC_CLOCK
from edge_tprune.telemetry.gpu import LOAD as GPU_LOAD
from edge_tprune.telemetry.host import CLOCK as CPU_CLOCK
from edge_tprune.telemetry.host import LOAD as CPU_LOAD
from edge_tprune.telemetry.host import SWAP
from edge_tprune.telemetry.metric import Metric
from edge_tprune.telemetry.program import ProgramSource, Report
from edge_tprune.telemetry.source import Clock
from edge_tprune.telemetry.thermal import OFFLINE_C, PLAUSIBLE_C, temperature_metric, zone_name

EMC_LOAD = Metric("emc_load_percent", "percent", None, "mean", "busy share of the memory that GPU and CPU share", step=1.0)
MEMORY_USED = Metric("memory_used_bytes", "bytes", "lower", "max", "memory in use, by everything")

_INTERVAL_S = 0.5
_BYTES = {"k": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_NUMBER = r"\d+(?:\.\d+)?"
_CLOCKS = rf"\[(?:{_NUMBER},?)*\]|{_NUMBER}"
_TOKEN = re.compile(
    rf"""
      (?P<time>\d\d-\d\d-\d{{4}}\s+\d\d:\d\d:\d\d)
    | (?P<memory>RAM|SWAP|IRAM)\s+(?P<used>{_NUMBER})/{_NUMBER}(?P<prefix>[kMG])B(?:\s*\([^()]*\))?
    | (?:CPU|cpu)\s+\[(?P<cores>[^\[\]]*)\](?:@(?P<cores_mhz>-?{_NUMBER}))?
    | (?P<emc>EMC(?:_FREQ)?)\s+(?:(?P<emc_load>{_NUMBER})%)?(?:@(?P<emc_mhz>{_NUMBER}))?
    | (?P<gpu>GR3D(?:_FREQ)?)\s+(?:(?P<gpu_load>{_NUMBER})%)?(?:@(?P<gpu_mhz>{_CLOCKS}))?
    | EDP\s+limit\s+{_NUMBER}
    | MTS\s+fg\s+{_NUMBER}%\s+bg\s+{_NUMBER}%
    | (?P<zone>[A-Za-z][\w.-]*)@(?P<celsius>-?{_NUMBER})C(?:/-?{_NUMBER}C)?
    | (?P<rail>[A-Za-z][\w.]*)\s+(?P<power>-?{_NUMBER})(?:mW)?/-?{_NUMBER}(?:mW)?(?:/-?{_NUMBER}(?:mW)?)?
    | (?P<engine>[A-Z][A-Z0-9_]*)\s+(?:off|{_NUMBER}%?(?:@(?:{_CLOCKS}))?|@(?:{_CLOCKS}))
    """,
    re.VERBOSE,
)
_GAP_BEFORE_NEXT = re.compile(r"\s+|$")


def parse(line: str) -> Report:
    """What a line says. Damaged and unknown words are listed as unknown; nothing is raised."""
    report = Report()
    position = 0
    while position < len(line):
        space = _GAP_BEFORE_NEXT.match(line, position)
        if space and space.end() > position:
            position = space.end()
            continue
        token = _TOKEN.match(line, position)
        if token and _GAP_BEFORE_NEXT.match(line, token.end()):
            _take(token, report)
            position = token.end()
            continue
        word = re.compile(r"\S+").match(line, position)
        if word is None:
            break
        report.unknown.append(word[0])
        position = word.end()
    return report


def tegrastats_source(
    board: Board, *, program: str | None = None, clock_ns: Clock = time.perf_counter_ns, first_line_s: float = 5.0
) -> ProgramSource | None:
    """The source "tegrastats", which runs the program; None where it is not installed.

    Args:
        board: says what the total is made of.
        program: its path; by default it is looked for.
        clock_ns: stamps the lines.
        first_line_s: how long to wait for the first of them.
    """
    found = program or shutil.which("tegrastats")
    if found is None:
        return None
    command = [found, "--interval", str(round(_INTERVAL_S * 1000))]
    return ProgramSource(
        "tegrastats", command, parse, board, interval_s=_INTERVAL_S, clock_ns=clock_ns, first_line_s=first_line_s
    )


def _take(token: re.Match[str], report: Report) -> None:
    found = token.groupdict()
    if found["memory"]:
        if found["memory"] != "IRAM":
            metric = MEMORY_USED if found["memory"] == "RAM" else SWAP
            report.add(metric, float(found["used"]) * _BYTES[found["prefix"]])
    elif found["cores"] is not None:
        _take_cores(found["cores"], found["cores_mhz"], report)
    elif found["emc"]:
        report.add(EMC_LOAD, _float(found["emc_load"]), high=100)
        report.add(EMC_CLOCK, _float(found["emc_mhz"]))
    elif found["gpu"]:
        report.add(GPU_LOAD, _float(found["gpu_load"]), high=100)
        report.add(GPU_CLOCK, _mean([float(mhz) for mhz in re.findall(_NUMBER, found["gpu_mhz"] or "") if float(mhz) > 0]))
    elif found["zone"]:
        celsius = float(found["celsius"])
        metric = temperature_metric(zone_name(found["zone"]) or "zone")
        report.add(metric, celsius, *PLAUSIBLE_C)
        if celsius <= OFFLINE_C and metric.name in report.gaps:
            report.gaps[metric.name] = "offline"
    elif found["rail"] and found["rail"] != "NC":
        report.add_rail(found["rail"], "tegrastats", float(found["power"]))


def _take_cores(text: str, common_mhz: str | None, report: Report) -> None:
    """'15%@729,off,11%@729': those that are on."""
    loads, clocks = [], []
    for core in text.split(","):
        if match := re.fullmatch(rf"\s*({_NUMBER})%(?:@({_NUMBER}))?\s*", core):
            loads.append(float(match[1]))
            clock = float(match[2] or common_mhz or -1)
            if clock > 0:  # releases before 28 say -1 where they do not know
                clocks.append(clock)
    report.add(CPU_LOAD, _mean(loads), high=100)
    report.add(CPU_CLOCK, _mean(clocks))


def _float(text: str | None) -> float | None:
    return None if text is None else float(text)


def _mean(numbers: list[float]) -> float | None:
    return sum(numbers) / len(numbers) if numbers else None
