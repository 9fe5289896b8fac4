"""What training from a mount costs beside training from a disk: ``python/bench.sh``."""
