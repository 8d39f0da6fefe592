"""What training leaves behind: the notebook that protocols and plots read."""
