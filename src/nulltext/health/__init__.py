"""Whether nulltext runs as it should here, and whether a checkpoint behaves as its family does."""
