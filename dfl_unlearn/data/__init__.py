"""What each peer holds: data sets, partitions, the flat store, forget requests."""
