"""A pruned module in; one ONNX graph per runtime and precision, proved equal to it, written into a bundle, out.

May import: reduction, models, search (schedule files), bundle, runtime. Needs torch; never on a board.
"""
