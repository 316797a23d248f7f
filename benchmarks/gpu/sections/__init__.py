"""One file a section; `gpu/sections` of `bench_gpu.py` lists them."""
