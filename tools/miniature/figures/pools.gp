# pools.gp: the paper's figure 6, its half of the losses: expert choice by size of the pool.
set xlabel "pool, tokens"
set ylabel "held-out loss, nats per byte"
set logscale x 2
set offsets graph 0.1, graph 0.1, graph 0.1, graph 0.1
plot "pools.csv" skip 1 using 2:(of("causal") ? $4 : NaN) with points pt 7 lc rgb colour("ec") \
         title "causal: by thresholds, each seed", \
     "" skip 1 using 2:(of("causal") ? $4 : NaN) smooth unique with lines lw 2 \
         lc rgb colour("ec") title "mean", \
     "" skip 1 using 2:(of("trained") ? $4 : NaN) smooth unique with lines lw 2 dt 2 \
         lc rgb colour("ec") title "routed as in training: later tokens are seen"
