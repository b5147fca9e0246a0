"""MCMC that takes hours."""
