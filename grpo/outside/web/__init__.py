"""HTTP to servers, as a client.

`client` is every call; `address`, `wires` and `replies` are the way there, the connection and what
comes back. `private` has files of this user alone: keys, tokens, logs. The engines behind a URL are
in `rollout/remote/`, the judge in `rewards/judge.py`.
"""
