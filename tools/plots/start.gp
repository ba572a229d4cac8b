# start.gp: the moving average from its first step on, plain, corrected, and behind a warm-up.
# Run in the folder of the CSV files: gnuplot start.gp
set datafile separator ","
set datafile missing "NaN"
set grid lc rgb "#dddddd"

of(stream) = strcol(1) eq stream
formats = "svg"
if (strstrt(GPVAL_TERMINALS, "pngcairo") > 0) formats = "svg pngcairo"

do for [format in formats] {
    if (format eq "svg") {
        set terminal svg size 960,380 font "sans,12" background rgb "white"
        set output "start.svg"
    } else {
        set terminal pngcairo size 960,380 font "sans,10"
        set output "start.png"
    }
    set multiplot layout 1,2
    set xlabel "step"

    set title "threshold, mean over experts (normal)"
    set key bottom right
    plot "start.csv" skip 1 using 2:(of("normal") ? $3 : NaN) with lines lc rgb "#bbbbbb" title "the batch's cutoff", \
         "" skip 1 using 2:(of("normal") ? $5 : NaN) with lines lw 2 lc rgb "#1e8449" title "divided by 1 - beta^u", \
         "" skip 1 using 2:(of("normal") ? $4 : NaN) with lines lw 2 lc rgb "#c0392b" title "plain"

    set title "load / k, mean over experts (normal)"
    set logscale y 2
    set key top right
    plot "start.csv" skip 1 using 2:(of("normal") ? $6 : NaN) with lines lw 2 lc rgb "#c0392b" title "plain", \
         "" skip 1 using 2:(of("normal") ? $7 : NaN) with lines lw 2 lc rgb "#1e8449" title "divided by 1 - beta^u", \
         "" skip 1 using 2:(of("normal") ? $8 : NaN) with lines lw 2 dt 2 lc rgb "#2471a3" title "plain, after a warm-up by expert choice"
    unset logscale y
    unset multiplot
    unset output
}
