"""Is it as the paper says? Its figures and tables as runs, at any scale, and what came of them."""
