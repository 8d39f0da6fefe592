"""Did it forget, at what price: metrics before, after and against retraining."""
