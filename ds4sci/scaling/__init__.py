"""Scaling of a training: measured runs and their report, and a model that predicts step times on a cluster."""
