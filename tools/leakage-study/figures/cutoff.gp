# cutoff.gp: how far expert choice's cutoff scatters from batch to batch, by size of the batch.
# Run in the folder of the CSV files: gnuplot cutoff.gp
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

# Their exponents, as fitted.
fitted = ""
do for [s in streams] {
    stats "fits.csv" skip 1 using (of(s) && strcol(2) eq "cutoff_std" ? $4 : 0) nooutput
    fitted = fitted . sprintf(" %.3f", STATS_sum)
}

set title "Expert choice's cutoff over batches"
set xlabel "N, tokens in the batch"
set ylabel "standard deviation (a score's: 1)"
set logscale x 2
set logscale y 10
set grid lc rgb "#cccccc" lt 1
set key below Left reverse height 1 maxrows 2 samplen 3

formats = "svg"
if (strstrt(GPVAL_TERMINALS, "pngcairo") > 0) formats = "svg pngcairo"

do for [format in formats] {
    if (format eq "svg") {
        set terminal svg size 760,540 font "sans,14" background rgb "white"
        set output "cutoff.svg"
    } else {
        set terminal pngcairo size 760,540 font "sans,12"
        set output "cutoff.png"
    }
    plot for [i=1:words(streams)] "pools.csv" skip 1 using 2:(of(word(streams, i)) ? $5 : NaN) \
             with points pt mark(word(streams, i)) ps 1.2 lc rgb colour(word(streams, i)) \
             title sprintf("%s: N^{%s}", word(streams, i), word(fitted, i)), \
         "" skip 1 using 2:(of("normal") ? $13 : NaN) with lines lw 2 dt 2 lc rgb "black" \
             title "theory: (p (1-p) / N)^{1/2} / f"
    unset output
}
