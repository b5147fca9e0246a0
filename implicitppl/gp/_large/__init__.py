"""More observations than a factor of all of them allows."""
