"""Modules made of kernels; parameter names follow AlphaFold's and OpenFold's."""
