# load.gp: expert threshold's load, and how far its choice is expert choice's, by size of the pool.
# Run in the folder of the CSV files: gnuplot load.gp
set datafile separator ","
set datafile missing "NaN"
set grid lc rgb "#dddddd"

of(stream) = strcol(1) eq stream
formats = "svg"
if (strstrt(GPVAL_TERMINALS, "pngcairo") > 0) formats = "svg pngcairo"

do for [format in formats] {
    if (format eq "svg") {
        set terminal svg size 960,380 font "sans,12" background rgb "white"
        set output "load.svg"
    } else {
        set terminal pngcairo size 960,380 font "sans,10"
        set output "load.png"
    }
    set multiplot layout 1,2

    set title "expert threshold: standard deviation of load / k"
    set xlabel "N, tokens in the batch"
    set logscale x 2
    set logscale y 10
    set key top right
    plot "pools.csv" skip 1 using 2:(of("normal") ? $8 : NaN) with points pt 7 lc rgb "#2471a3" title "normal", \
         "" skip 1 using 2:(of("normal") ? $14 : NaN) with lines lw 2 lc rgb "#2471a3" title "theory: sqrt((1-p)/k)", \
         "" skip 1 using 2:(of("text") ? $8 : NaN) with linespoints pt 5 lc rgb "#1e8449" title "text", \
         "" skip 1 using 2:(of("drifting") ? $8 : NaN) with linespoints pt 9 lc rgb "#c0392b" title "drifting"

    set title "expert choice at pool P and expert threshold: Jaccard"
    set xlabel "P, tokens in the pool"
    unset logscale y
    set yrange [0.5:1]
    set key bottom right
    plot "agreement.csv" skip 1 using 2:(of("normal") ? $3 : NaN) with linespoints pt 7 lc rgb "#2471a3" title "normal", \
         "" skip 1 using 2:(of("text") ? $3 : NaN) with linespoints pt 5 lc rgb "#1e8449" title "text", \
         "" skip 1 using 2:(of("drifting") ? $3 : NaN) with linespoints pt 9 lc rgb "#c0392b" title "drifting"
    unset multiplot
    set yrange [*:*]
    unset output
}
