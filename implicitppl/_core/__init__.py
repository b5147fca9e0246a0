"""The ground floor: arrays in, arrays out, and no class that a user sees."""
