"""A name, a checkpoint or photos in; a network ready to be pruned, its preprocessing, data sets with labels out.

May import: nothing of the other rooms. `data`, `images`, `labels`, `class_names` and `preprocess` need no torch and run on boards.
"""
