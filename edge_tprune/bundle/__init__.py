"""The bundle: what `build` wrote comes in; checked graphs, engine files for a runtime, and accuracy per budget go out.

May import: runtime, telemetry (what identifies this machine), models (data and preprocessing). No torch; runs on boards.
"""
