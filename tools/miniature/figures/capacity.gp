# capacity.gp: the paper's figure 13: loads before the capacity, and what its bounds cut and pad.
set multiplot layout 1,3
set bmargin 7
set xlabel "step"
is(v) = of(v) && $3 == 1
do for [p in "raw_usage overflow_rate underflow_rate"] {
    set title p[1:] noenhanced
    plot for [v in "et-capacity et et-cold"] "dynamics.csv" using 2:(is(v) ? column(p) : NaN) \
        with lines lw 2 lc rgb colour(v) title v
}
unset multiplot
