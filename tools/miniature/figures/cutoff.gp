# cutoff.gp: after the paper's figure 3: how far the batch's cutoff is from the moving average, and
# how many tokens then pass the threshold.
set xlabel "batch cutoff - threshold"
set ylabel "tokens above the threshold, share"
set yrange [0:*]
plot "experts.csv" skip 1 using (of("et") ? $8 : NaN):6 with points pt 7 ps 0.4 \
         lc rgb colour("et") title "et, an expert in a step", \
     1.0/16 with lines lw 2 lc rgb "black" title "target"
