"""What do the experiments compare, and with what? Runs, figures and the baselines that they are measured against."""
