"""Rows and choices in; HTML pages, plots and tables for papers out.

May import: analysis, record. No torch.
"""
