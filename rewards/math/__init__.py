"""The `math` reward: what an answer claims, and whether it is the gold."""
