"""A bundle and a machine in, a profile out: checks, rounds of turns, the sampler in a process of its own, the doctor.

May import: record, bundle, runtime, telemetry, models (data). No torch; runs on boards.
"""
