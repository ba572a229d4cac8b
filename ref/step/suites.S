/* suites.S: the built-in suites, byte for byte as they lie in data/cases, inside the library, so
 * that an installed etref needs no data folder. A byte 0 ends each. Paths are relative to the root of the sources. */

    .section .rodata

    .macro suite name
    .globl et_suite_\name
    .hidden et_suite_\name
    .type et_suite_\name, %object
et_suite_\name:
    .incbin "data/cases/\name\().json"
    .byte 0
    .endm

    suite smoke
    suite core
    suite paper
    suite model
    suite modern
    suite parallel

    .section .note.GNU-stack, "", %progbits
