"""Neural kernel networks, and the formulas that they are read back as."""
