"""The methods that ``benchmarks/sweep_throughput.py`` compares, each run in a process of its own."""
