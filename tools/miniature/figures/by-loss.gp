# by-loss.gp: the paper's figures 15 and 16: experts of a token by its loss, in all and by layer.
set xlabel "loss of the token, nats"
set ylabel "routed experts of the token"
set yrange [0:*]
plot for [v in "ec-1024 ec et"] "losses.csv" skip 1 \
         using 2:(of(v) && strcol(3) eq "all" ? $5 : NaN) with linespoints pt 7 ps 0.6 lw 2 \
         lc rgb colour(v) title v.", mean of layers", \
     for [l in "1 2 3"] "" skip 1 using 2:(of("et") && strcol(3) eq l ? $5 : NaN) with lines lw 1 \
         dt int(l)+1 lc rgb colour("et") title "et, layer ".l
