"""Everything about files, flags, processes and scores that training and testing share."""

__version__ = "0.2.0"
