"""Losses: plain functions of outputs and truths, one file per family, and ``fold.py`` that weighs them."""
