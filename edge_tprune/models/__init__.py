"""A name, a checkpoint or photos in; a network ready to be pruned, its preprocessing, data sets with labels out.

May import: nothing of the other rooms. `loading` and `reference` need torch; `data` and `preprocess` do not and run on boards.
"""
