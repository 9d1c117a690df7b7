"""The command line: one file a verb, each a thin shell on one call of the Python API."""
