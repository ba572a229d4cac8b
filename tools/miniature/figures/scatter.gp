# scatter.gp: how far a trained layer's cutoffs scatter from pool to pool, beside 1/sqrt(pool).
set xlabel "tokens of the pool"
set ylabel "deviation of an expert's cutoff, mean of 16"
set logscale xy
set xrange [48:*]
set offsets graph 0, graph 0.05, graph 0.05, graph 0
is(o, l) = of("et") && strcol(2) eq o && $3 == l
stats "scatter.csv" skip 1 using (is("mixed", 1) && $4 == 64 ? $5 : NaN) nooutput
plot for [l in "1 3"] "scatter.csv" skip 1 using 4:(is("text", int(l)) ? $5 : NaN) \
         with linespoints pt 7 lw 2 dt int(l) lc rgb colour("et") title "layer ".l.", as the text comes", \
     for [l in "1 3"] "" skip 1 using 4:(is("mixed", int(l)) ? $5 : NaN) \
         with linespoints pt 6 lw 2 dt int(l) lc rgb colour("tc-stacked") title "layer ".l.", tokens mixed", \
     "" skip 1 using 4:(is("mixed", 1) ? STATS_max*sqrt(64/$4) : NaN) with lines lw 1 lc rgb "black" \
         title "1/sqrt(pool)"
