# logits.gp: the paper's figure 18: a router's logits on held-out text.
set xlabel "logit"
set ylabel "tokens"
set style fill solid 0.5 noborder
is(l, e) = of("et") && $2 == l && $3 == e
plot "logits.csv" skip 1 using 4:(is(1, 0) ? $5 : NaN) with steps lw 2 lc rgb colour("et") \
         title "et, layer 1, expert 0", \
     "" skip 1 using 4:(is(3, 15) ? $5 : NaN) with steps lw 2 lc rgb colour("tc-stacked") \
         title "et, layer 3, expert 15"
