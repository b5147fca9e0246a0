"""The functional ELBO, and what follows training."""
