/* old_kernels.c: an OpenBLAS that does not know this processor. Loaded before the tool with LD_PRELOAD.
 *
 * It says that its kernels are those for SSE3, as OpenBLAS 0.3.21 does on processors newer than itself,
 * unless OPENBLAS_CORETYPE is set; with OLD_KERNELS=always also then.
 */
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

char *openblas_get_corename(void)
{
    static char old[] = "Prescott";
    const char *always = getenv("OLD_KERNELS");
    if (getenv("OPENBLAS_CORETYPE") == NULL || (always != NULL && strcmp(always, "always") == 0))
        return old;
    char *(*real)(void);
    *(void **)&real = dlsym(RTLD_NEXT, "openblas_get_corename");
    return real();
}
