"""The embedded engine: continuous batching on plain torch.

    torch_engine                      requests in, completions out
    rows, prefill, decoder, sampling  what is decoded, prompts read, one token more, which token
    kv_cache, own_cache               keys and values; caches that only a model's own code knows
    engine_weights                    the private copy of the model, and how weights reach it
    ways                              what another device does in another way

`cpu/` is what it has for CPUs alone.
"""
