"""The benchmark suite and its report: ``pytest bench/`` and ``python -m bench.report``."""
