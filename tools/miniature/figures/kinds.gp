# kinds.gp: the paper's figures 4b and 22: whose experts code, sums and prose are, last layer.
set multiplot layout 2,2
set bmargin 5
set xlabel "expert of layer 3, by number"
set ylabel "usage / 0.0625"
set yrange [0:*]
set key maxrows 1
colour_of(k) = k eq "prose" ? 0x0072B2 : k eq "code" ? 0xD55E00 : 0x009E73
do for [v in "mixed-ec-256 mixed-ec-1024 mixed-ec mixed-et"] {
    set title v
    plot for [k in "prose code sums"] "kinds.csv" skip 1 \
        using 5:(of(v) && strcol(2) eq k && $4 == 3 ? $6*16 : NaN) with linespoints pt 7 ps 0.6 \
        lw 2 lc rgb colour_of(k) title k
}
unset multiplot
