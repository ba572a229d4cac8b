/* figures.S: the gnuplot scripts of tools/leakage-study/figures, byte for byte, inside the program, so that an
 * installed etref needs no folder of its own. Paths are relative to the root of the sources. */

    .section .rodata

    .macro plot name
    .globl et_plot_\name
    .globl et_plot_\name\()_end
    .type et_plot_\name, %object
    .type et_plot_\name\()_end, %object
et_plot_\name:
    .incbin "tools/leakage-study/figures/\name\().gp"
et_plot_\name\()_end:
    .byte 0
    .endm

    plot leakage
    plot cutoff
    plot load
    plot start
    plot flips

    .section .note.GNU-stack, "", %progbits
