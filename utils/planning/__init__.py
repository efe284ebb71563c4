"""From a folder of scans to a recipe: what the scans are, and which settings follow from it."""
