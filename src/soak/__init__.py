"""A training under kills, full disks and corrupted checkpoints, compared with one that was left alone."""
