"""Where the stacked state lives and who advances it."""
