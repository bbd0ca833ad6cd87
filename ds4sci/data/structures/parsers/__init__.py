"""Readers of what laboratories and databases hand out. Each gives ``ds4sci.types`` values; none knows torch."""
