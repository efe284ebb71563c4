"""Commands (the files in this folder) and the library (its folders, each with one job)."""

from utils.system.account import name_user, quieten_matplotlib
from utils.system.streams import fill_closed_descriptors

__version__ = "0.2.0"

# here, since every program and notebook comes by before it imports MONAI or opens a file that it keeps
fill_closed_descriptors()
name_user()
quieten_matplotlib()
