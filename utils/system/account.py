"""Users whom /etc/passwd doesn't name, or who have no home folder, as in containers that run under a given user id."""

import getpass
import logging
import os


def name_user() -> None:
    """Give a user without a name one by the variable LOGNAME: MONAI and torch ask for it, and fail without."""
    try:
        getpass.getuser()
    except (KeyError, OSError):  # the latter from Python 3.13 on
        os.environ["LOGNAME"] = f"uid{os.getuid()}"


def quieten_matplotlib() -> None:
    """Keep matplotlib from reporting that its own folder can't be written; it then takes a temporary one."""
    logging.getLogger("matplotlib").addFilter(lambda record: record.funcName != "_get_config_or_cache_dir")
