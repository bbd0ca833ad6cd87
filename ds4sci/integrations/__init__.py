"""Other people's models and call sites, by our kernels: ``patch(model)``, or the functions they call."""

from ds4sci.integrations.patching import Patched, patch, unpatch

__all__ = ["Patched", "patch", "unpatch"]
