"""The `math` reward: what an answer claims, and whether it is the gold.

`reward` is the verifier. From text to a claim: `statement`, `spelling`, `clauses`,
`hedges`, `sums`, `prose`, `signs`, `vocabulary`. Decided by text
alone: `words`, `latex`, `units`, `intervals`, `exact`; `ruling` puts them
together. Only in the sandbox, with SymPy: `guest`, `formula`, `algebra`. Which text is
the answer: `rewards/extract.py`.
"""
