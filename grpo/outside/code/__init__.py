"""Code of users: found by its name, imported as it is now, and tidied up after.

`plugins` finds what a recipe names, `fresh` imports it, `foreign` says where it went wrong and puts
back what it changed. Programs that a model wrote never come here: they run in `rewards/sandbox/`.
"""
