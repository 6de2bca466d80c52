"""Training of the prior: data, the constant baseline, sections of the genome, and the loop."""
