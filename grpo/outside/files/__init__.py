"""Files: ours, whole or not at all; and what others wrote, within bounds."""
