/* early_tsan.c: ThreadSanitizer's runtime, for a program that was not built with it. Loaded before it
 * with LD_PRELOAD.
 *
 * The runtime needs libstdc++, whose constructors the loader runs first, and they call functions which
 * the runtime replaces and has not found yet. So it is set up before any constructor: this library
 * is linked to be the first (-z initfirst).
 */
/* The runtime's own name. NOLINTNEXTLINE(bugprone-reserved-identifier) */
void __tsan_init(void);

__attribute__((constructor)) static void set_up(void)
{
    __tsan_init();
}
