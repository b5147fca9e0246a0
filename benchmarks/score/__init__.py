"""Score estimators and their peers: errors, times, memory."""
