"""Messages of the library as a command line shows them.

Below this room an error names a setting by its field, in backquotes: "`out_channels` is 14". Here it gets the name of
the flag: "--out_channels is 14".
"""

import re

FIELD = re.compile(r"`([a-zA-Z_]\w*)`")
# fields that several flags make up, or that are spelled otherwise
SPELLED = {
    "img_size": "--roi_x, --roi_y, --roi_z",
    "roi": "--roi_x, --roi_y, --roi_z",
    "spacing": "--space_x, --space_y, --space_z",
    "dist_url": "--dist-url",
    "dist_backend": "--dist-backend",
}


def name_flags(text: str) -> str:
    """The text with each field in backquotes as the flag that sets it."""
    return FIELD.sub(lambda match: SPELLED.get(match[1], f"--{match[1]}"), text)
