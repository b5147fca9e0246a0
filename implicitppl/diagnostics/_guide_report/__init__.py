"""The table on a fitted guide, and what it compares."""
