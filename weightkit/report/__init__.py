"""Report: numbers as text for people: units, tables, the pipeline, histograms. Knows no command line."""
