"""Loss functions of model outputs and targets. ``fold`` combines the terms of the structure model."""
