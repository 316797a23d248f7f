"""Speed and memory against other implementations; `benchmarks/bench_perf.py` runs it."""
