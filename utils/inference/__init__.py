"""From a preprocessed scan to class probabilities, and back to the scan's own grid."""
