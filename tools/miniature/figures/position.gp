# position.gp: the paper's figure 5: experts of a token by its place in the sequence.
set xlabel "position in the sequence"
set ylabel "routed experts of a token, mean over layers"
set yrange [0:*]
variants = "ec-seq ec-1024 ec et"
plot for [v in variants] "positions.csv" skip 1 using 2:(of(v) ? $4 : NaN) with linespoints pt 7 \
    ps 0.6 lw 2 lc rgb colour(v) title v
