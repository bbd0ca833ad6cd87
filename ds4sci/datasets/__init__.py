"""Datasets: name, version, licence, files with checksums, and how each is fetched or generated.

The folder is the registry: every module here with a constant ``DATASET`` is a dataset of that name. It may have a
function ``make(folder, sources)`` that writes the files.
"""
