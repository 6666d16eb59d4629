"""tegrastats: NVIDIA's program on every Jetson, whose lines change from release to release.

The order of words is free and new ones appear: known words are read, the others are skipped. Known shapes:

    RAM 6185/7620MB (lfb 8x2MB)   SWAP 851/3810MB (cached 1MB)   IRAM 0/252kB(lfb 252kB)
    CPU [15%@729,off,11%@729]     CPU [15%,11%]@1479             cpu [0%,off]@-1
    EMC_FREQ 43%@2133             GR3D_FREQ 62%  62%@306  63%@[621]  12%@[1300,1300]  @[1574,1574,1574]  @[300,off,600]
    NVDEC off   VIC_FREQ 729   NVENC 716   APE 174   MTS fg 0% bg 0%   PVA0_FREQ off   EDP limit 0
    gpu@43C   CPU@-256C   cpu@52.968C/52.968C
    VDD_IN 4067/4067   VDD_IN 12479mW/12479mW   VIN 21000mW/21000mW/21000mW      (now, mean, and in JetPack 7 a third)

Releases also differ in the blanks inside a word: `20%@[0, 300]` and `12 %@[600, 600]` are read as if they were written without.
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
from edge_tprune.telemetry.metric import SensorMetric
from edge_tprune.telemetry.program import ProgramSource, Report
from edge_tprune.telemetry.source import Clock
from edge_tprune.telemetry.thermal import OFFLINE_C, PLAUSIBLE_C, temperature_metric, zone_name

EMC_LOAD = SensorMetric(
    "emc_load_percent", "percent", None, "mean", "busy share of the memory that GPU and CPU share", step=1.0
)
MEMORY_USED = SensorMetric("memory_used_bytes", "bytes", "lower", "max", "memory in use, by everything")

_INTERVAL_S = 0.5
_BYTES = {"k": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_NUMBER = r"\d+(?:\.\d+)?"
_LIST = r"\[[^\[\]\s]*\]"
#: What a unit that is clocked says of itself: off, its load, its clock, or both, each one number or a list.
_USE = rf"(?:off|(?:{_NUMBER}%|{_LIST})?(?:@(?:{_NUMBER}|{_LIST}))?)"
_TOKEN = re.compile(
    rf"""
      (?P<time>\d\d-\d\d-\d{{4}}\s+\d\d:\d\d:\d\d)
    | (?P<memory>RAM|SWAP|IRAM)\s+(?P<used>{_NUMBER})/{_NUMBER}(?P<prefix>[kMG])B(?:\s*\([^()]*\))?
    | (?:CPU|cpu)\s+\[(?P<cores>[^\[\]]*)\](?:@(?P<cores_mhz>-?{_NUMBER}))?
    | (?:EMC|EMC_FREQ)\s+(?P<emc>{_USE})
    | (?:GR3D|GR3D_FREQ)\s+(?P<gpu>{_USE})
    | EDP\s+limit\s+{_NUMBER}
    | MTS\s+fg\s+{_NUMBER}%\s+bg\s+{_NUMBER}%
    | (?P<zone>[A-Za-z][\w.-]*)@(?P<celsius>-?{_NUMBER})C(?:/-?{_NUMBER}C)?
    | (?!(?:RAM|SWAP|IRAM)\b)(?P<rail>[A-Za-z][\w.]*)\s+(?P<power>-?{_NUMBER})(?:mW)?/-?{_NUMBER}(?:mW)?(?:/-?{_NUMBER}(?:mW)?)?
    | (?P<engine>[A-Z][A-Z0-9_]*)\s+(?:{_NUMBER}(?![\d.%@])|{_USE})
    """,
    re.VERBOSE,
)
_PART = re.compile(rf"(?P<load>{_NUMBER})%(?:@(?P<clock>{_NUMBER}))?")
_CLOCK = re.compile(_NUMBER)
_END_OF_WORD = re.compile(r"\s+|$")
_BLANKS_IN_LIST = re.compile(r"\[[\d.,%@of\s-]*\]")
_BLANKS_AT_SIGN = re.compile(r"(?<=\d)\s+(?=%)|(?<=[%\]])\s+(?=@\s*[\[\d])|(?<=@)\s+(?=[\[\d])")


def parse(line: str) -> Report:
    """What a line says. Damaged and unknown words are listed as unknown; nothing is raised."""
    report = Report()
    line = _BLANKS_IN_LIST.sub(lambda found: re.sub(r"\s", "", found[0]), line)
    line = _BLANKS_AT_SIGN.sub("", line)
    position = 0
    while position < len(line):
        space = _END_OF_WORD.match(line, position)
        if space and space.end() > position:
            position = space.end()
            continue
        token = _TOKEN.match(line, position)
        if token and _END_OF_WORD.match(line, token.end()):
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
    """Adds what one word says."""
    found = token.groupdict()
    if found["memory"]:
        if found["memory"] != "IRAM":
            metric = MEMORY_USED if found["memory"] == "RAM" else SWAP
            report.add(metric, float(found["used"]) * _BYTES[found["prefix"]])
    elif found["cores"] is not None:
        loads, clocks = _use_of(f"[{found['cores']}]" + (f"@{found['cores_mhz']}" if found["cores_mhz"] else ""))
        report.add(CPU_LOAD, _mean(loads), high=100)
        report.add(CPU_CLOCK, _mean(clocks))
    elif found["emc"]:
        _take_use(found["emc"], EMC_LOAD, EMC_CLOCK, report)
    elif found["gpu"]:
        _take_use(found["gpu"], GPU_LOAD, GPU_CLOCK, report)
    elif found["zone"]:
        celsius = float(found["celsius"])
        metric = temperature_metric(zone_name(found["zone"]) or "zone")
        report.add(metric, celsius, *PLAUSIBLE_C)
        if celsius <= OFFLINE_C and metric.name in report.gaps:
            report.gaps[metric.name] = "offline"
    elif found["rail"] and found["rail"] != "NC":
        report.add_rail(found["rail"], "tegrastats", float(found["power"]))


def _take_use(text: str, load: SensorMetric, clock: SensorMetric, report: Report) -> None:
    """Adds load and clock of a unit: the means over its parts that are on."""
    loads, clocks = _use_of(text)
    report.add(load, _mean(loads), high=100)
    report.add(clock, _mean(clocks))
    if text == "off":
        report.gaps |= dict.fromkeys((load.name, clock.name), "off")


def _use_of(text: str) -> tuple[list[float], list[float]]:
    """Loads (percent) and clocks (MHz) of the parts that are on: '15%@729', '[15%@729,off]', '[15%,off]@1479', '@[300,off]'.

    A clock that is 0 is off; releases before 28 write -1 for one that they do not know.
    """
    if text.startswith("["):
        inside, _, clock_text = text[1:].partition("]")
    else:
        inside, _, clock_text = text.partition("@")
    parts = [part for item in inside.split(",") if (part := _PART.fullmatch(item))]
    loads = [float(part["load"]) for part in parts]
    clocks = [part["clock"] for part in parts if part["clock"]]
    clocks += [item for item in clock_text.strip("@[]").split(",") if _CLOCK.fullmatch(item)]
    return loads, [float(clock) for clock in clocks if float(clock) > 0]


def _mean(numbers: list[float]) -> float | None:
    return sum(numbers) / len(numbers) if numbers else None
