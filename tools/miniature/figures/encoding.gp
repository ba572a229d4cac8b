# encoding.gp: the paper's figure 9: Algorithm 2 on three tokens. A path is one of the eight selections:
# a token's score halves the interval, a token that is taken (full disc) leaves its lower half; the
# path ends at the cutoff, which is below all that are taken.
unset key
set xrange [0.7:4.9]
set yrange [-0.06:1]
set xtics ("token 0" 1, "token 1" 2, "token 2" 3, "cutoff" 4)
set ytics 0, 0.125
set ylabel "score"
all = "000 001 010 011 100 101 110 111"
here = "encoding.csv"
is(s) = strcol(1) eq s
plot for [s in all] here skip 1 using ($2 + 1):(is(s) ? $3 : 1/0) with lines lc rgb "#999999", \
     for [s in all] here skip 1 using (is(s) && $2 == 2 ? 3 : 1/0):3:(1):($5 - $3) with vectors nohead \
         lc rgb "#999999", \
     here skip 1 using ($2 + 1):($4 == 1 ? $3 - 0.02 : 1/0) with points pt 7 ps 1.3 \
         lc rgb colour("et"), \
     here skip 1 using ($2 + 1):($4 == 0 ? $3 + 0.02 : 1/0) with points pt 6 ps 1.3 \
         lc rgb colour("et"), \
     for [s in all] here skip 1 using (is(s) && $2 == 2 ? 4.1 : 1/0):5:(s) with labels left
