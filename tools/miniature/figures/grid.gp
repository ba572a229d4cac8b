# grid.gp: the paper's figure 20: which experts a character goes to, sums, last layer.
unset key
unset grid
set xlabel "character of the passage"
set ylabel "expert of layer 3"
set yrange [-0.5:15.5]
set xrange [-1:60]
set ytics 0, 3
taken(s, i) = s[i+1:i+1] eq "1"
here = "passages.csv"
plot for [i=0:15] here skip 1 \
    using (strcol(2) eq "sums" && $5 == 3 && $3 < 60 && taken(strcol(7), i) ? $3 : NaN):(i) \
    with points pt 5 ps 1.1 lc rgb colour("et")
