"""Latency, energy and accuracy of recorded profiles, without PyTorch: python examples/read_profile.py profiles

What `--json` prints is stable: metrics describe themselves with label, unit and direction.
"""

import json
import subprocess
import sys

compared = subprocess.run([sys.executable, "-m", "edge_tprune", "compare", *sys.argv[1:], "--json"], stdout=subprocess.PIPE)
if compared.returncode:  # it has said why
    sys.exit(compared.returncode)
document = json.loads(compared.stdout)
for group in document["groups"]:  # one per board, power mode, runtime, ...: rows of one group may be compared
    print(group["conditions"]["board"] or group["conditions"]["host"])
    for row in group["rows"]:
        print(f"  budget {row['budget']}")
        for name in ("top1_percent", "p50_ms", "p95_ms", "energy_mj_per_image"):
            metric, value = document["metrics"].get(name), row["metrics"].get(name)
            if metric is None:  # nothing measured it: energy on a machine without a power sensor
                continue
            print(f"    {metric['label']}: {'not measured' if value is None else f'{value:.2f} ' + metric['unit']}")
