# rules.gp: the paper's figure 2: twelve tokens and four experts under the three rules. A column is an
# expert, a disc a token at its logit; full: taken; the line is the number that decides.
set multiplot layout 1,3
unset key
set bmargin 5
set xrange [-0.6:3.6]
set yrange [-3:3]
set xtics 0,1
set xlabel "expert"
set ylabel "logit"
title_of(r) = r eq "tc" ? "tc: each token its best" : \
    r eq "ec" ? "ec: each expert its best 3" : "et: all above the threshold"
do for [r in "tc ec et"] {
    set title title_of(r)
    plot "rules.csv" skip 1 using ($3 + ($2 - 5.5)*0.06):(of(r) && $5 == 0 ? $4 : NaN) with points \
             pt 6 ps 0.9 lc rgb "#888888", \
         "" skip 1 using ($3 + ($2 - 5.5)*0.06):(of(r) && $5 == 1 ? $4 : NaN) with points \
             pt 7 ps 0.9 lc rgb colour(r eq "tc" ? "tc-stacked" : r), \
         "" skip 1 using 3:(of(r) && $2 == 0 && r ne "tc" ? $6 : NaN):(0.45) with xerrorbars \
             ps 0 lw 2 lc rgb "black"
}
unset multiplot
