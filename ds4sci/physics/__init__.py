"""Derivatives of an operator network's output with respect to its coordinates, and the equations made of them.

``differentiate(network, functions, points, names="xt")`` gives u and its derivatives at every (function, point), by
zero coordinate shift or by one of the two older ways, chosen by name (``METHODS``); ``ds4sci.physics.pdes`` holds
equations with their function spaces and reference solutions.
"""

from ds4sci.physics.fields import Fields
from ds4sci.physics.locality_check import mixes_points
from ds4sci.physics.zcs import METHODS, differentiate

__all__ = ["METHODS", "Fields", "differentiate", "mixes_points"]
