# by-fanout.gp: the paper's figure 17: mean loss by the experts of a token, all layers together.
set xlabel "routed experts of the token, sum of layers (at least 50 tokens)"
set ylabel "mean loss, nats"
plot for [v in "ec-1024 ec et-cold et"] "fanouts.csv" skip 1 \
    using 3:(of(v) && strcol(2) eq "all" && $4 >= 50 ? $5 : NaN) with linespoints pt 7 ps 0.6 lw 2 \
    lc rgb colour(v) title v
