# leakage.gp: what expert choice may tell about the future, and what it does tell.
# Run in the folder of the CSV files: gnuplot leakage.gp
set datafile separator ","
set datafile missing "NaN"

least(a, b) = a < b ? a : b
share(rule, value) = strcol(1) eq "normal" && strcol(2) eq rule && value > 0 ? value : NaN

set logscale x 2
set logscale y 10
set format x "2^{%L}"
set format y "10^{%L}"
set xlabel "N, tokens that are routed together"
set grid lc rgb "#cccccc" lt 1
set bmargin 10
set key below Left reverse height 1 maxrows 5 samplen 3

formats = "svg"
if (strstrt(GPVAL_TERMINALS, "pngcairo") > 0) formats = "svg pngcairo"

do for [format in formats] {
    if (format eq "svg") {
        set terminal svg size 1100,580 font "sans,14" background rgb "white"
        set output "leakage.svg"
    } else {
        set terminal pngcairo size 1100,580 font "sans,12"
        set output "leakage.png"
    }
    set multiplot layout 1,2

    set title "What a rule may tell (16 experts, G = 2, 9 layers)"
    set ylabel "bits per token"
    set xrange [8:2.0**40]
    set yrange [1e-10:1e4]
    plot "bounds.csv" skip 1 using 1:2 with lines lw 2 lc rgb "#D55E00" title "expert choice", \
         ""           skip 1 using 1:4 with lines lw 2 dt 2 lc rgb "black" title "9 G log_2(E-1), the paper's figure", \
         ""           skip 1 using 1:(least($5, $2)) with lines lw 2 lc rgb "#0072B2" title "expert choice, 16-bit scores", \
         1e-10 with lines lw 6 lc rgb "#009E73" title "expert threshold, token choice: 0"

    set title "What it does tell (normal scores)"
    set ylabel "share of past decisions that change"
    set xrange [*:*]
    set yrange [1e-5:1]
    plot "flips.csv" skip 1 using 3:(share("ec", $6)) with linespoints pt 7 lw 2 lc rgb "#D55E00" title "expert choice, the worst future", \
         "" skip 1 using 3:(share("ec", $5)) with linespoints pt 6 lw 2 dt 2 lc rgb "#D55E00" title "expert choice, a random future", \
         "" skip 1 using 3:(share("et-capacity", $6)) with linespoints pt 5 lw 2 lc rgb "#E69F00" title "expert threshold, C = 0.5, the worst", \
         "" skip 1 using 3:(share("et-capacity", $5)) with linespoints pt 4 lw 2 dt 2 lc rgb "#E69F00" title "expert threshold, C = 0.5, a random one", \
         1e-5 with lines lw 6 lc rgb "#009E73" title "expert threshold, token choice: 0"
    unset multiplot
    unset output
}
