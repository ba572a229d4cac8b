/* help.S: the help texts of tools/etref/help, byte for byte, inside the program: what `etref help COMMAND` prints. The man
 * page, etref.1, says the same at more length. Paths are relative to the root of the sources. */

    .section .rodata

    .macro text name
    .globl help_\name
    .type help_\name, %object
help_\name:
    .incbin "tools/etref/help/\name\().txt"
    .byte 0
    .endm

    text generate
    text verify
    text check
    text show
    text list
    text leakage
    text bench
    text train
    text sample
    text eval
    text compare

    .section .note.GNU-stack, "", %progbits
