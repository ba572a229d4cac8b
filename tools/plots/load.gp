# load.gp
