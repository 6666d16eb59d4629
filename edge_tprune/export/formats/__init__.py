"""What was chosen, as files that another program takes: one module per format, none of which needs PyTorch.

`edge_tprune.export.formats.package.export_package` is the way in.
"""
