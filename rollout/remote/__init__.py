"""Engines behind a URL.

`http_engine` is what they share. `server` talks to `grpo serve` (vLLM), with `server_answers`,
`server_control`, `server_token` and `segments`, which carry weights through memory; `server_guard`
and `server_transport` run inside that server. `endpoint` talks to any server with OpenAI's API, and
takes no weights. The HTTP client is in `grpo/outside/web/`.
"""
