"""A sensor of your own: python examples/own_sensor.py"""

import time

from edge_tprune.telemetry.metric import SensorMetric
from edge_tprune.telemetry.source import CallSensor, NoReading, SensorSource


def read_watts() -> float:
    """Stands for a call to your hardware: here it fails every other second."""
    if int(time.time()) % 2:
        raise NoReading("the meter is busy")
    return 4.2


metric = SensorMetric(
    name="wall_power_w",
    unit="W",
    better="lower",
    help="power at the wall",
    interval_s=0.1,  # the meter has a new value this often
    step=0.1,  # the smallest change that it can show
)
source = SensorSource("wall meter", [CallSensor(metric, read_watts)])
for _ in range(3):
    reading = source.read()
    print(reading.values or reading.gaps)  # {'wall_power_w': 4.2}, or {'wall_power_w': 'the meter is busy'}
    time.sleep(0.5)
source.close()
