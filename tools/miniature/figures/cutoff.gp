# cutoff.gp: after the paper's figure 3: how far the batch's cutoff is from the moving average, and
# how many tokens an expert then takes; once the warm-up of 200 steps is over.
set xlabel "batch cutoff - threshold"
set ylabel "tokens that the expert takes, share"
set yrange [0:*]
plot 1.0/16 with lines lw 1 lc rgb "black" title "target", \
     for [v in "et ec"] "experts.csv" skip 1 using (of(v) && $2 >= 200 ? $8 : NaN):5 \
         with points pt 7 ps 0.4 lc rgb colour(v) title v
