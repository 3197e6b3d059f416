"""Start workers. One launcher a file; here: workers of this machine."""
