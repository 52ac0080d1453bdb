"""Datasets, calibration sets and their digests; torch-free, everything streams one image at a time."""

from athe_export.data.source import Dataset, open_dataset

__all__ = ["Dataset", "open_dataset"]
