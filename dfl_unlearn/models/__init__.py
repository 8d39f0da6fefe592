"""Models as pure functions of one flat parameter vector."""
