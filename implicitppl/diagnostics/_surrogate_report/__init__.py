"""The table on a run of `ScoreHMC`."""
