"""How do the official code bases' files, names and arguments become ours, and ours theirs? Without transformers."""
