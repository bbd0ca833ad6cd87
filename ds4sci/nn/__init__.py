"""Modules made of kernels; parameter names follow AlphaFold's and OpenFold's.

A module that hands its children's parameters to a kernel, instead of calling the children, says so with the class
attribute ``reads_parameters_of_children = True``: under ZeRO-3 it is gathered as a whole.
"""
