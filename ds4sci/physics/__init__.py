"""Derivatives of an operator network's output with respect to coordinates, and partial differential equations.

``differentiate(network, functions, points, names="xt")`` returns u and its derivatives at every (function, point), by
zero coordinate shift or by one of two baseline methods, selected by name (``METHODS``). ``ds4sci.physics.pdes`` holds
equations with their function spaces and reference solutions.
"""

from ds4sci.physics.fields import Fields
from ds4sci.physics.locality_check import mixes_points
from ds4sci.physics.zcs import METHODS, differentiate

__all__ = ["METHODS", "Fields", "differentiate", "mixes_points"]
