"""Our guides and estimators beside those people use today, in one run and one table."""
