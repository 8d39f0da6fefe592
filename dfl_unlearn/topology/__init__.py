"""Who talks to whom, and how much: graphs of peers and their mixing matrices."""
