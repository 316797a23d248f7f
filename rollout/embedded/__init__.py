"""The embedded engine: continuous batching on plain torch."""
