"""How long a first result takes: compiling and running, each in a fresh process without a cache."""
