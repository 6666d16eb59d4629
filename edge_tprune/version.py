"""The package's version, which every room may ask for without importing the package's public functions."""

__version__ = "0.2.0"
