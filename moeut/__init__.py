"""moeut: Mixture-of-Experts Universal Transformers (arXiv 2405.16039), from training to explanation."""
