"""Layers that are faster or more exact than torch's and MONAI's own."""
