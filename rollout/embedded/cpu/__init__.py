"""The embedded engine on a CPU: fused layers, packed products, C++ of its own.

`fused` decodes Llama-like models with `packed` linear layers and `rotation`; `group_cache` holds a
prompt once for its group, read by `group_attention` (torch) or `compiled_attention` (C++); `draw`
is sampling in C++. Kernels that the learner uses too are in `grpo/kernels/`.
"""
