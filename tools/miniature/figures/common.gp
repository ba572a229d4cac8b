# common.gp: read before each figure, in the folder of the CSV files. Colours are Okabe and Ito's.
set datafile separator ","
set datafile missing "NaN"
set grid lc rgb "#cccccc" lt 1
set key below Left reverse height 1 maxrows 3 samplen 3
of(variant) = strcol(1) eq variant
colour(v) = v eq "dense" ? 0x666666 : v eq "tc-stacked" ? 0xD55E00 : v eq "tc-each" ? 0xE69F00 : \
    v eq "ec" ? 0x009E73 : v eq "et" ? 0x0072B2 : v eq "ec-seq" ? 0x9ACD32 : \
    v eq "ec-1024" ? 0x556B2F : v eq "et-cold" ? 0xCC79A7 : v eq "et-capacity" ? 0x56B4E9 : \
    v eq "et-capacity-cold" ? 0xCC79A7 : v eq "tc-lossfree" ? 0xE69F00 : 0x000000
