"""What decoding on a GPU needs: a cache that stays where it is, captured steps, and a host that never waits for one."""
