"""Files, by whoever wrote them.

Ours: `durable` (there whole or not at all), `lines` (one JSON value a line), `manifest` and
`hashes` (what is read again is what was written). Those of others: `json_rows` and `yaml_tree`,
within bounds, and `file_names` for names that become files. Which files a run has: `grpo/rundir/`.
"""
