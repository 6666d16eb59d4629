"""The profile: raw lines in, its one reader, the summary, energy and the verdict derived from them out.

May import: telemetry (what a sensor's metric is). No torch; runs on boards.
"""
