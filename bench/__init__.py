"""Measurements, each with its reference in the same run. `python -m bench --help` lists them."""
