"""Speed and memory, compared with other libraries: ``python -m benchmarks.NAME --help``."""
