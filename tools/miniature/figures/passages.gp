# passages.gp: the paper's figures 4a, 19, 20, 21: experts of each character, by layer.
set multiplot layout 3,1
set bmargin 3
set lmargin 8
unset key
set xrange [-1:60]
set yrange [0.5:3.5]
set ytics (1, 2, 3)
set ylabel "layer"
unset xtics
unset grid
set cbrange [0:4]
set palette defined (0 "white", 1 "#fde0c5", 2 "#f2a35e", 4 "#b3360b")
set colorbox user origin 0.95,0.1 size 0.012,0.8
set rmargin 10
set cblabel "experts"
hidden(b) = b == 34 || b == 92 || b == 38 || b == 60 || b < 33 || b > 126
shown(b) = b == 10 ? "/" : hidden(b) ? " " : sprintf("%c", b)
do for [k in "prose code sums"] {
    set title k
    plot "passages.csv" skip 1 using (of("mixed-et") && strcol(2) eq k && $3 < 60 ? $3 : NaN):5:6 \
             with points pt 5 ps 2.2 lc palette, \
         "" skip 1 using (strcol(2) eq k && $3 < 60 ? $3 : NaN):5:(shown($4)) with labels \
             font "monospace,11" noenhanced
}
unset multiplot
