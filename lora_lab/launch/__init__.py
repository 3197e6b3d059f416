"""Start workers. One launcher a file, behind one contract (`launcher`); `local` is a worker in this process."""
