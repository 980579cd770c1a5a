"""How does one see for oneself what the paper found? Its figures and tables as runs, at any scale, and what came of them."""
