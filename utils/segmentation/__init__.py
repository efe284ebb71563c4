"""Segment scans: one after the other into an output folder, or for a program.

``from utils.segmentation import Segmenter; mask = Segmenter("runs/x/model.pt")("scan.nii.gz").mask``
"""

from utils.segmentation.segmenter import Segmented, Segmenter

__all__ = ["Segmented", "Segmenter"]
