# flips.gp: which past decisions another future changes, by their place in the batch.
# Run in the folder of the CSV files: gnuplot flips.gp
set datafile separator ","
set datafile missing "NaN"

# The largest batch, and the smallest that is not tiny.
stats "flips-by-position.csv" skip 1 using 3 nooutput
large = STATS_max
small = large > 64 ? large / 4**floor(log(large / 64) / log(4)) : large
share(rule, batch, value) = \
    strcol(1) eq "normal" && strcol(2) eq rule && $3 == batch ? 100 * value : NaN

set grid lc rgb "#cccccc" lt 1
set bmargin 10
set key below Left reverse height 1 maxrows 5 samplen 3
set ylabel "past decisions that change"
set format y "%g %%"

formats = "svg"
if (strstrt(GPVAL_TERMINALS, "pngcairo") > 0) formats = "svg pngcairo"

do for [format in formats] {
    if (format eq "svg") {
        set terminal svg size 1100,580 font "sans,14" background rgb "white"
        set output "flips.svg"
    } else {
        set terminal pngcairo size 1100,580 font "sans,12"
        set output "flips.png"
    }
    set multiplot layout 1,2
    do for [batch in sprintf("%d %d", small, large)] {
        set title sprintf("Batches of %s tokens (normal scores)", batch)
        set xlabel "place in the batch, tokens"
        set xrange [0:batch + 0]
        set yrange [0:*]
        plot "flips-by-position.csv" skip 1 using ($5*$3):(share("ec", batch + 0, $7)) with linespoints pt 7 ps 0.6 lw 2 lc rgb "#D55E00" title "expert choice, the worst future", \
             "" skip 1 using ($5*$3):(share("ec", batch + 0, $6)) with linespoints pt 6 ps 0.6 lw 2 lc rgb "#D55E00" dt 2 title "expert choice, a random future", \
             "" skip 1 using ($5*$3):(share("et-capacity", batch + 0, $7)) with linespoints pt 5 ps 0.6 lw 2 lc rgb "#E69F00" title "expert threshold, C = 0.5, the worst", \
             "" skip 1 using ($5*$3):(share("et-capacity", batch + 0, $6)) with linespoints pt 4 ps 0.6 lw 2 lc rgb "#E69F00" dt 2 title "expert threshold, C = 0.5, a random one", \
             0 with lines lw 6 lc rgb "#009E73" title "expert threshold, token choice: 0"
    }
    unset multiplot
    unset output
}
