"""vLLM in this process.

`engine` is the engine; `arguments` and `requests` translate to and from vLLM, `readback` and `lora`
prove which weights it holds, `speculation` is for drafts. Every workaround is in `compat`, with the
versions it is for. vLLM behind a URL: `rollout/remote/`.
"""
