"""Code that is not ours: plug-ins, where they went wrong, and what they may not leave changed."""
