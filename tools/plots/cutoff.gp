# cutoff.gp: how far expert choice's cutoff scatters around the moving average, by size of the batch.
# Run in the folder of the CSV files: gnuplot cutoff.gp
set datafile separator ","
set datafile missing "NaN"
set grid lc rgb "#dddddd"
set title "batch cutoff - threshold: standard deviation"
set xlabel "N, tokens in the batch"
set logscale x 2
set logscale y 10
set key top right

of(stream) = strcol(1) eq stream
formats = "svg"
if (strstrt(GPVAL_TERMINALS, "pngcairo") > 0) formats = "svg pngcairo"

do for [format in formats] {
    if (format eq "svg") {
        set terminal svg size 640,420 font "sans,12" background rgb "white"
        set output "cutoff.svg"
    } else {
        set terminal pngcairo size 640,420 font "sans,10"
        set output "cutoff.png"
    }
    plot "pools.csv" skip 1 using 2:(of("normal") ? $6 : NaN) with points pt 7 lc rgb "#2471a3" title "normal", \
         "" skip 1 using 2:(of("normal") ? $13 : NaN) with lines lw 2 lc rgb "#2471a3" title "theory: sqrt(p(1-p)/N) / f", \
         "" skip 1 using 2:(of("text") ? $6 : NaN) with linespoints pt 5 lc rgb "#1e8449" title "text", \
         "" skip 1 using 2:(of("drifting") ? $6 : NaN) with linespoints pt 9 lc rgb "#c0392b" title "drifting"
    unset output
}
