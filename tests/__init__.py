"""Tests, laid out as the package is; a package itself so that every test can import its helpers."""
