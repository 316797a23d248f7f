"""The embedded engine on a CPU: fused layers, packed products, C++."""
