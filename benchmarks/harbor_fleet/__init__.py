"""The parts of benchmarks/harbor.py: a fleet that is heard, planned, trained on, scored and judged."""
