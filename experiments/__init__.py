"""Command line experiments; each module is a script: `python -m experiments.NAME --help`."""
