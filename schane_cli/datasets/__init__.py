"""Which datasets exist, how to get them and read them."""
