"""The governor on a simulated Jetson that heats up, beside every fixed budget: python examples/governor.py [PROFILE [TRACE.json]]

Latency and top-1 come from a recorded profile. With a second argument, the whole record (a row every five seconds) is written to that file.
"""

import json
import subprocess
import sys
from pathlib import Path

import msgspec

from edge_tprune.agent.thermal_ramp import BudgetCost, profile_governor

kept = Path(__file__).parents[1] / "profiles" / "int8-deit_tiny-bat-2-core-server"
profile = sys.argv[1] if len(sys.argv) > 1 else str(kept)
if len(sys.argv) > 2 and not Path(sys.argv[2]).parent.is_dir():
    sys.exit(f"{sys.argv[2]} cannot be written: there is no directory {Path(sys.argv[2]).parent}")
compared = subprocess.run([sys.executable, "-m", "edge_tprune", "compare", profile, "--json"], stdout=subprocess.PIPE)
if compared.returncode:
    sys.exit(compared.returncode)
rows = [row for group in json.loads(compared.stdout)["groups"] for row in group["rows"] if row["budget"].endswith("@int8")]
if not rows:
    sys.exit(f"{profile} has no budgets in int8 beside those in fp32: measure with --precision fp32,int8")
costs = [
    BudgetCost(budget=row["budget"], latency_ms=row["metrics"]["p50_ms"], accuracy_percent=row["metrics"]["top1_percent"])
    for row in rows
]
costs.sort(key=lambda cost: -cost.accuracy_percent)

found = profile_governor(costs, deadline_ms=40)  # 25 frames a second
for name, outcome in {"governor": found.governed, **found.fixed}.items():
    print(f"{name:10} misses {outcome.missed_percent:5.2f} % of the deadlines, top-1 {outcome.accuracy_percent:.2f} %")
print(f"best fixed budget that misses no more: {found.best_fixed}")
for decision in found.decisions:
    print(f"frame {decision.frame}: {decision.before} to {decision.budget}, {decision.reason}")
if len(sys.argv) > 2:
    Path(sys.argv[2]).write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=0))
