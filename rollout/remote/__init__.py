"""Engines behind a URL."""
