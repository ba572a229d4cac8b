# load.gp: expert threshold's load by size of the batch, and how far its choice is expert choice's,
# by size of the pool. Run in the folder of the CSV files: gnuplot load.gp
set datafile separator ","
set datafile missing "NaN"

# The streams that are there, each with a colour (Okabe and Ito's, for all eyes) and a mark.
of(stream) = strcol(1) eq stream
streams = ""
do for [s in "normal text drifting"] {
    stats "pools.csv" skip 1 using (of(s) ? 1 : 0) nooutput
    if (STATS_sum > 0) { streams = streams . " " . s }
}
colour(s) = s eq "normal" ? 0x0072B2 : s eq "text" ? 0xD55E00 : 0x009E73
mark(s) = s eq "normal" ? 7 : s eq "text" ? 5 : 9

set logscale x 2
set format x "2^{%L}"
set grid lc rgb "#cccccc" lt 1
set bmargin 9
set key below Left reverse height 1 maxrows 2 samplen 3

formats = "svg"
if (strstrt(GPVAL_TERMINALS, "pngcairo") > 0) formats = "svg pngcairo"

do for [format in formats] {
    if (format eq "svg") {
        set terminal svg size 1100,520 font "sans,14" background rgb "white"
        set output "load.svg"
    } else {
        set terminal pngcairo size 1100,520 font "sans,12"
        set output "load.png"
    }
    set multiplot layout 1,2

    set title "Expert threshold's load"
    set xlabel "N, tokens in the batch"
    set ylabel "standard deviation of load / k"
    set logscale y 10
    plot for [s in streams] "pools.csv" skip 1 using 2:(of(s) ? $8 : NaN) \
             with points pt mark(s) ps 1.2 lc rgb colour(s) title s, \
         "" skip 1 using 2:(of("normal") ? $14 : NaN) with lines lw 2 dt 2 lc rgb "black" \
             title "theory: ((1-p) / k)^{1/2}"

    set title "Expert choice in pools, beside expert threshold"
    set xlabel "P, tokens in the pool"
    set ylabel "assignments in common (Jaccard)"
    unset logscale y
    set yrange [*:1]
    plot for [s in streams] "agreement.csv" skip 1 using 2:(of(s) ? $3 : NaN) \
             with linespoints pt mark(s) ps 1.2 lw 2 lc rgb colour(s) title s
    unset multiplot
    set yrange [*:*]
    unset output
}
