"""Host functions as sites of a model."""
