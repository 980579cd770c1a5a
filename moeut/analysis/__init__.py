"""What happens inside a model while it reads? Record it, measure it, draw it, read it token by token."""

from moeut.analysis.recording import record

__all__ = ["record"]
