"""Text → tokens → blocks → batches: from files to what training and evaluation read."""
