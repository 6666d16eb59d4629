"""Photos and a cost in; a schedule file (method, options, tokens after each block per budget) out.

May import: reduction, schedule, models. Needs torch; never on a board.
"""
