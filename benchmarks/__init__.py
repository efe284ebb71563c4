"""The commands that measure what the documentation claims."""

import utils  # noqa: F401  (prepares for MONAI, which the commands import)
