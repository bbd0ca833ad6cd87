"""Images and volumes from files: readers, resampling, patient-wise splits, tiles, and adaptive patches.

``reading.read_image`` reads TIFF, PNG, NIfTI, DICOM and NPZ. ``image_set.build`` makes a dataset of equal tiles.
"""
