# warmup.gp: the paper's figures 10 and 13: what a warm-up does to thresholds and loads, layer 1.
set multiplot layout 2,3
set bmargin 5
set key maxrows 2 font ",9"
set xlabel "step"
variants = "ec et-capacity et-capacity-cold"
is(v) = of(v) && $3 == 1
panel = "raw_usage cutoff threshold starvation saturation logit_std"
title_of(p) = p eq "raw_usage" ? "tokens above the threshold, share" : \
    p eq "cutoff" ? "batch cutoff" : \
    p eq "threshold" ? "threshold of the moving average" : p eq "starvation" ? "starvation" : \
    p eq "saturation" ? "saturation" : "standard deviation of logits"
do for [p in panel] {
    set title title_of(p)
    plot for [v in variants] "dynamics.csv" using 2:(is(v) ? column(p) : NaN) with lines lw 2 \
        lc rgb colour(v) title v
}
unset multiplot
