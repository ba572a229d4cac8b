# cutoff.gp
