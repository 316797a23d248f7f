"""vLLM in this process.

`engine` is the engine; `arguments` says in vLLM's words what is asked, `readback` and `lora`
prove which weights it holds, `speculation` is for drafts. Every workaround is in `compat`, with the
versions it is for. vLLM behind a URL: `rollout/remote/`.
"""
