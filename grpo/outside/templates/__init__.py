"""Chat templates, which are programs of whoever made a model.

`chat_templates` reads and tries one and settles its date, `template_limits` says what it may do and
for how long. What a prompt looks like in the end is decided in `data/prompts.py`.
"""
