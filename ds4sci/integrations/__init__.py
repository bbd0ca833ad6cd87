"""Other people's models and call sites: what they call, by our kernels."""
