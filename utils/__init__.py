"""Everything about files, flags, processes and scores that training and testing share."""
