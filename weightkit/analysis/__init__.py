"""Analysis: counts, statistics, comparison and soundness. Reads weights, changes nothing."""
