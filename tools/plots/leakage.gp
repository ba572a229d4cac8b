# leakage.gp
