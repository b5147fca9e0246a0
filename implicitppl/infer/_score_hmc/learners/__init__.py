"""Where the force comes from: values of the target, or states of the chains."""
