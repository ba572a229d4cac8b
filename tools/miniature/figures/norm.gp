# norm.gp: the paper's figure 12: held-out loss with and without division by the fan-out, mean over seeds.
set xlabel "tokens, millions"
set ylabel "held-out loss, nats per byte"
variants = "dense et et-fanout"
plot for [v in variants] "curves.csv" skip 1 using ($4/1e6):(of(v) ? $5 : NaN) smooth unique \
    with linespoints pt 7 ps 0.5 lw 2 lc rgb colour(v) title v
