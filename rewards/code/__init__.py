"""The `code` reward: a program, its tests, and what crosses between them.

`reward` is the verifier and `fences` finds the program in a completion; `guest` alone runs text, in
the sandbox. Tests are read by `names`, `rewrites` and `readings`. They talk
to the program through `stubs` and `asking`, and `program` answers; `plain`, `values`, `classes`,
`raising` and `rebuild` are what may cross. `prelude` is what both find without an import. `stdio`
judges whole programs by input and output. Rows of published data sets: `grpo/outside/rows/`.
"""
