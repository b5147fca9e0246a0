"""What all Gaussian processes share."""
