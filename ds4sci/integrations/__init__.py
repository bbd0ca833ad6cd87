"""Integration of the kernels into existing models: ``patch(model)``, and drop-in functions for call sites."""

from ds4sci.integrations.patching import PatchReport, patch, unpatch

__all__ = ["PatchReport", "patch", "unpatch"]
