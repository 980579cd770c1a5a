"""What is computed: from one expert's matrix to a language model's loss."""
