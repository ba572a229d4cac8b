# bias.gp: the paper's figure 11: layer 1's thresholds beside the bias of loss-free balancing.
set multiplot layout 1,3
set bmargin 7
set xlabel "step"
is(v, i) = of(v) && $3 == 1 && $4 == i
set title "et: threshold of each expert"
plot for [i=0:15] "experts.csv" skip 1 using 2:(is("et", i) ? $7 : NaN) with lines lw 1 \
    lc rgb colour("et") notitle
set title "ec: threshold of each expert"
plot for [i=0:15] "experts.csv" skip 1 using 2:(is("ec", i) ? $7 : NaN) with lines lw 1 \
    lc rgb colour("ec") notitle
set title "tc, loss-free: bias of each expert"
plot for [i=0:15] "experts.csv" skip 1 using 2:(is("tc-lossfree", i) ? $9 : NaN) with lines lw 1 \
    lc rgb colour("tc-lossfree") notitle
unset multiplot
