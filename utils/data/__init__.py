"""From a data list to batches: check, preprocessing, crops, augmentation, loaders."""
