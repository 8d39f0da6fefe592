"""What protocols are compared with; each satisfies the same contract."""
