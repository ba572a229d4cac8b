/* help.h: each command's help text, as `etref help COMMAND` prints it. */
#ifndef ETREF_TOOL_HELP_H
#define ETREF_TOOL_HELP_H

extern const char help_generate[], help_verify[], help_check[], help_show[], help_list[], help_leakage[],
    help_bench[], help_train[], help_sample[], help_eval[],
    help_compare[];

#endif
