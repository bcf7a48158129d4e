"""Finding rows that the log calls healthy and the statistics do not: episodes, refinement, gate, figures."""
