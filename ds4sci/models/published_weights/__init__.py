"""Parameters of AlphaFold 2 and OpenFold, in and out of the structure model.

``read_weights(path)`` reads AlphaFold's ``.npz``, OpenFold's ``.pt`` and safetensors, and gives the tensors the names
of ``ds4sci.models.fold.FoldModel``; ``write_weights`` is the reverse. ``key_map`` has all names in one table.
"""

from ds4sci.models.published_weights.model_weights import export_openfold, read_for
from ds4sci.models.published_weights.weight_file import WeightFile, read_weights, write_weights

__all__ = ["WeightFile", "export_openfold", "read_for", "read_weights", "write_weights"]
