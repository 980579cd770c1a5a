"""What does a model say? Text from a prompt."""
