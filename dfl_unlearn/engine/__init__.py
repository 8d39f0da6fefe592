"""Training the network: configuration, state, kernels, trainers, backends."""
