"""Modules built on the kernels. Parameter names follow AlphaFold and OpenFold.

A module that passes its children's parameters to a kernel, instead of calling the children, sets the class attribute
``reads_parameters_of_children = True``. ZeRO-3 then gathers it as a whole.
"""
