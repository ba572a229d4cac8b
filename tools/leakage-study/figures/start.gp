# start.gp: the moving average from its first step on, plain and corrected, with and without warm-up.
# Run in the folder of the CSV files: gnuplot start.gp
set datafile separator ","
set datafile missing "NaN"

of(stream) = strcol(1) eq stream
set grid lc rgb "#cccccc" lt 1
set bmargin 8
set key below Left reverse height 1 maxrows 3 samplen 3
set xlabel "step"

formats = "svg"
if (strstrt(GPVAL_TERMINALS, "pngcairo") > 0) formats = "svg pngcairo"

do for [format in formats] {
    if (format eq "svg") {
        set terminal svg size 1100,520 font "sans,14" background rgb "white"
        set output "start.svg"
    } else {
        set terminal pngcairo size 1100,520 font "sans,12"
        set output "start.png"
    }
    set multiplot layout 1,2

    set title "Threshold from a cold start (normal scores)"
    set ylabel "mean over experts (a score's deviation: 1)"
    plot "start.csv" skip 1 using 2:(of("normal") ? $3 : NaN) with lines lw 1 lc rgb "#999999" title "the batch's own cutoff", \
         "" skip 1 using 2:(of("normal") ? $5 : NaN) with lines lw 2 lc rgb "#0072B2" title "moving average / (1 - β^u)", \
         "" skip 1 using 2:(of("normal") ? $4 : NaN) with lines lw 2 lc rgb "#D55E00" title "moving average, plain"

    set title "Load of the routing that results"
    set ylabel "load / k, mean over experts"
    set logscale y 2
    plot "start.csv" skip 1 using 2:(of("normal") ? $6 : NaN) with lines lw 2 lc rgb "#D55E00" title "plain", \
         "" skip 1 using 2:(of("normal") ? $7 : NaN) with lines lw 2 lc rgb "#0072B2" title "divided by 1 - β^u", \
         "" skip 1 using 2:(of("normal") ? $8 : NaN) with lines lw 2 dt 2 lc rgb "black" title "plain, behind a warm-up by expert choice"
    unset logscale y
    unset multiplot
    unset output
}
