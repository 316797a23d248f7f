"""The method: advantages, objectives and the rows they make. No device, no settings, no files."""
