# by-layer.gp: the paper's figure 16: how many tokens have so many experts, by layer.
set xlabel "routed experts of a token"
set ylabel "share of tokens"
set logscale y
set format y "10^{%T}"
set key maxrows 2
stats "fanouts.csv" skip 1 using (of("et") && strcol(2) eq "1" ? $4 : 0) nooutput
total = STATS_sum
plot for [l in "1 2 3"] "fanouts.csv" skip 1 \
    using 3:(of("et") && strcol(2) eq l ? $4/total : NaN) with linespoints pt 7 ps 0.6 lw 2 \
    dt int(l) lc rgb colour("et") title "et, layer ".l
