"""`/sys` and friends in, readings with units out: power rails, GPU, clocks, temperatures, memory; boards as data.

May import: nothing of the other rooms. No torch; runs on boards.
"""
