/* suites.S: the built-in suites, byte for byte as they lie in data/cases, inside the program, so
 * that an installed etref needs no data folder. Paths are relative to the root of the sources. */

    .section .rodata

    .macro suite name
    .globl et_suite_\name
    .globl et_suite_\name\()_end
    .type et_suite_\name, %object
    .type et_suite_\name\()_end, %object
et_suite_\name:
    .incbin "data/cases/\name\().json"
et_suite_\name\()_end:
    .byte 0
    .endm

    suite smoke
    suite core
    suite paper

    .section .note.GNU-stack, "", %progbits
