"""Photos and a pruned network in; a checkpoint whose pruned forms answer as the unpruned network did, out. No labels needed.

May import: reduction, schedule, models. Needs torch; never on a board.
"""
