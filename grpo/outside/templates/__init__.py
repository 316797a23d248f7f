"""Chat templates: programs of whoever made a model."""
