"""The profile: raw lines in, its one reader, the summary, energy and the verdict derived from them out.

May import: nothing of the other rooms. No torch; runs on boards.
"""
