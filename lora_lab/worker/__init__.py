"""Ask, plan, pack, train, settle: where the other rooms meet, and nothing else."""
