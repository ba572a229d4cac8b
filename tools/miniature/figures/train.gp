# train.gp: the paper's figure 7: loss in training, and on the held-out text.
set xlabel "tokens, millions"
set ylabel "nats per byte"
variants = "ec-seq ec et"
plot for [v in variants] "curves.csv" skip 1 using ($4/1e6):(of(v) ? $5 : NaN) smooth unique \
         with linespoints pt 7 ps 0.5 lw 2 lc rgb colour(v) title v.", held out", \
     for [v in variants] "" skip 1 using ($4/1e6):(of(v) ? $6 : NaN) smooth unique \
         with lines lw 2 dt 2 lc rgb colour(v) title v.", training since the last"
