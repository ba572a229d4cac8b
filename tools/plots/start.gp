# start.gp
