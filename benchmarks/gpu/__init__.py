"""What an accelerator changes."""
