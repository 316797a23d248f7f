"""What learner and engines share of a model. Neither of them is here.

Loading: `pretrained` is the door; `hub`, `model_files` and `checks` look first, and
`families` finds out by trying what can be trained. Weights: `adapter` (LoRA), `quantize` (four
bits), `casts`, `content_hash`, `canary`. Numbers: `compute_types`, `filters` (temperature, top-k,
top-p, min-p). The machine: `devices`, `ranks`, `transfer`.
"""
