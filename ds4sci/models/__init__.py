"""Whole models made of ``ds4sci.nn`` modules, and their configs."""
