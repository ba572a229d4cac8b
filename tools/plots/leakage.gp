# leakage.gp: what expert choice may tell about the future, and what it does tell.
# Run in the folder of the CSV files: gnuplot leakage.gp
set datafile separator ","
set datafile missing "NaN"
set grid lc rgb "#dddddd"
set key font ",10" spacing 1.1

formats = "svg"
if (strstrt(GPVAL_TERMINALS, "pngcairo") > 0) formats = "svg pngcairo"

do for [format in formats] {
    if (format eq "svg") {
        set terminal svg size 960,380 font "sans,12" background rgb "white"
        set output "leakage.svg"
    } else {
        set terminal pngcairo size 960,380 font "sans,10"
        set output "leakage.png"
    }
    set multiplot layout 1,2

    set title "may tell: bits per token (16 experts, G = 2, 9 layers)"
    set xlabel "N, tokens in the batch"
    set ylabel ""
    set logscale xy
    set format x "2^{%L}"
    set logscale x 2
    set format y "10^{%L}"
    set logscale y 10
    set xrange [8:2.0**40]
    set yrange [1e-8:1e4]
    set key bottom left
    plot "bounds.csv" skip 1 using 1:2 with lines lw 2 lc rgb "#c0392b" title "expert choice: log_2 C(N,k)", \
         ""           skip 1 using 1:4 with lines lw 1 dt 2 lc rgb "#c0392b" title "G log_2(E-1), as in the paper", \
         ""           skip 1 using 1:5 with lines lw 2 lc rgb "#2471a3" title "expert choice, 16-bit scores", \
         1e-8 with lines lw 4 lc rgb "#1e8449" title "expert threshold, token choice: 0"

    set title "does tell: past decisions that other futures change"
    unset logscale
    set xlabel "place in a batch of 1024 tokens"
    set format x "%g"
    set format y "%g %%"
    set xrange [0:1]
    set yrange [0:*]
    set key top right
    pick(rule) = strcol(1) eq "normal" && strcol(2) eq rule && $3 == BATCH
    BATCH = 1024
    plot "flips-by-position.csv" skip 1 using 5:(pick("ec") ? 100*$7 : NaN) with lines lw 2 lc rgb "#c0392b" title "expert choice: any future", \
         "" skip 1 using 5:(pick("et-capacity") ? 100*$7 : NaN) with lines lw 2 lc rgb "#d68910" title "expert threshold, capacity 0.5: any future", \
         "" skip 1 using 5:(pick("ec") ? 100*$6 : NaN) with lines lw 2 dt 3 lc rgb "#c0392b" title "expert choice: another future of the kind", \
         0 with lines lw 4 lc rgb "#1e8449" title "expert threshold, token choice"
    unset multiplot
    unset output
}
