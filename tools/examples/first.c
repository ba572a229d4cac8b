/* first.c: opens a golden and prints the first elements of y. tools/README.md's example in C.
 *
 *     cc first.c $(pkg-config --cflags --libs etref) -o first && ./first FILE
 */
#include <etref/etref.h>
#include <stdio.h>

int main(int argc, char **argv)
{
    et_tensor_file file;
    et_error error = {"usage: first FILE"};
    double y[4];
    if (argc < 2 || et_tensor_file_open(&file, argv[1], &error) != ET_OK) {
        fprintf(stderr, "%s\n", error.text);
        return 2;
    }
    const et_tensor_info *t = et_tensor_file_find(&file, "fwd.y");
    if (t && t->count >= 4 && et_tensor_file_read(&file, t, 0, 4, y, &error) == ET_OK)
        printf("fwd.y begins with %g %g %g %g\n", y[0], y[1], y[2], y[3]);
    et_tensor_file_close(&file);
}
