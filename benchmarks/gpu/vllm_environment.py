"""What vLLM is told by the environment wherever it is measured, and why."""

from __future__ import annotations

ENVIRONMENT = {
    # In this process: its memory is counted, and weights come by reference.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # vLLM 0.26 imports flashinfer for its sampler unless it is told not to, and fails without it;
    # the kit leaves flashinfer out. At temperature 1 without top-k and top-p it is not used.
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
    # Only the CPU build reads it: its threads stay where they are put, two workers may share cores.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # Start-up alone writes sixty lines of INFO.
    "VLLM_LOGGING_LEVEL": "ERROR",
    # Nothing is reported to anyone, and there is no network to try it on.
    "VLLM_NO_USAGE_STATS": "1",
}
