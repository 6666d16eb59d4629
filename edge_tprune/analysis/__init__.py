"""Profiles in; rows, comparisons and choices out, as data: nothing here prints.

May import: record. No torch.
"""
