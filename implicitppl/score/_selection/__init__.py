"""`select`: candidates judged on held-out samples, then stacked."""
