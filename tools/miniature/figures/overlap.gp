# overlap.gp: the paper's figures 8 and 14: how alike two checkpoints of a run route.
set multiplot layout 1,2
set xlabel "later checkpoint, % of the run"
set xrange [40:110]
set xtics (50, 75, 100)
set bmargin 8
variants = "tc-each ec-seq ec et"
set ylabel "choices that both make, of either's"
set yrange [0:1]
plot for [v in variants] "consistency.csv" skip 1 using 3:(of(v) ? $4 : NaN) with linespoints pt 7 \
    lw 2 lc rgb colour(v) title v
set ylabel "Jensen-Shannon divergence of a token's experts, bits"
set autoscale y
plot for [v in variants] "consistency.csv" skip 1 using 3:(of(v) ? $6 : NaN) with linespoints pt 7 \
    lw 2 lc rgb colour(v) title v
unset multiplot
