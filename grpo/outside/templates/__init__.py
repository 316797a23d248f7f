"""Chat templates, which are programs of whoever made a model.

`chat_templates` reads and tries one, `template_limits` says what it may do and for how long,
`dates` which date it writes. What a prompt looks like in the end is decided in `data/prompts.py`.
"""
