"""The `math` reward: what an answer claims, and whether it is the gold.

`reward` is the verifier. From text to a claim: `statement`, `dress`, `spelling`, `clauses`,
`hedges`, `given`, `sums` with `four_operations`, `prose`, `signs`, `vocabulary`. Decided by text
alone: `whole`, `words`, `latex`, `units`, `intervals`, `systems`, `exact`; `ruling` puts them
together. Only in the sandbox, with SymPy: `guest`, `formula`, `algebra`, `regions`. Which text is
the answer: `rewards/extract.py`.
"""
