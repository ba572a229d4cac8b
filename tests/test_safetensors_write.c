/* test_safetensors_write.c: the writer of safetensors files.
 *
 * Written files are compared byte by byte with files spelt out here, and read back. Tensors that
 * contradict themselves are refused with a message. Failing disks and places are tried as far as a
 * process can make them; what was there stays. Failing memory is in test_alloc.c, reading in
 * test_safetensors_read.c.
 */
#include "etref/random.h"
#include "tests/check_main.h"
#include "tests/tensor_files.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- what is written ---- */

static const double DOUBLES[] = {1.5, -2.5, 0.1, 1e300, -0.0, INFINITY};
static const float FLOATS[] = {1.5f, -2.5f, 0.1f, 3e38f};
static const int32_t INTS[] = {0, -1, INT32_MAX, INT32_MIN};
static const uint8_t BYTES[] = {0, 1, 255};

START_TEST(a_file_is_what_the_format_says_byte_by_byte)
{
    const et_tensor_out tensors[] = {
        {"b", ET_U8, 1, {3}, BYTES, ET_FROM_U8},
        {"z", ET_I32, 2, {2, 1}, INTS, ET_FROM_I32},
        {"a\"\\\n\xc3\xa9", ET_BF16, 0, {0}, DOUBLES, ET_FROM_F64}, /* a scalar with a wild name */
        {"y", ET_F64, 1, {1}, DOUBLES + 1, ET_FROM_F64},
    };
    const char *const metadata[] = {"z", "last first", "a", "{\"x\": 1}", NULL};
    static const char header[] =
        "{\"__metadata__\":{\"z\":\"last first\",\"a\":\"{\\\"x\\\": 1}\"},"
        "\"y\":{\"dtype\":\"F64\",\"shape\":[1],\"data_offsets\":[0,8]},"
        "\"z\":{\"dtype\":\"I32\",\"shape\":[2,1],\"data_offsets\":[8,16]},"
        "\"a\\\"\\\\\\n\xc3\xa9\":{\"dtype\":\"BF16\",\"shape\":[],\"data_offsets\":[16,18]},"
        "\"b\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[18,21]}}";
    static const unsigned char data[] = {0, 0,    0,    0,    0,    0,    4,    0xc0, 0, 0,   0,
                                         0, 0xff, 0xff, 0xff, 0xff, 0xc0, 0x3f, 0,    1, 0xff};
    unsigned char got[1024];
    assert_writes(tensors, COUNT(tensors), metadata);
    size_t size = get_bytes(got, sizeof got);
    size_t written = sizeof header - 1, padded = (written + 7) / 8 * 8;
    ck_assert_uint_gt(padded, written); /* the example does need padding */
    ck_assert_uint_eq(size, 8 + padded + sizeof data);
    ck_assert_uint_eq(got[0] + 256u * got[1], padded);
    for (int i = 2; i < 8; i++) ck_assert_uint_eq(got[i], 0);
    ck_assert_mem_eq(got + 8, header, written);
    for (size_t i = written; i < padded; i++) ck_assert_int_eq(got[8 + i], ' ');
    ck_assert_mem_eq(got + 8 + padded, data, sizeof data);
}
END_TEST

START_TEST(nothing_is_a_file_too)
{
    unsigned char got[64];
    assert_writes(NULL, 0, NULL);
    ck_assert_uint_eq(get_bytes(got, sizeof got), 16);
    ck_assert_mem_eq(got, "\x08\0\0\0\0\0\0\0{}      ", 16);
    et_tensor_file file;
    assert_opens(&file);
    ck_assert_uint_eq(file.tensor_count, 0);
    ck_assert_uint_eq(file.metadata_count, 0);
    ck_assert_ptr_null(et_tensor_file_find(&file, "x"));
    ck_assert_ptr_null(et_tensor_file_metadata(&file, "x"));
    et_tensor_file_close(&file);
    et_tensor_file_close(&file); /* twice is allowed */
    et_tensor_file zeros = {0};
    et_tensor_file_close(&zeros);
    ck_assert_int_ne(fcntl(0, F_GETFD), -1); /* descriptor 0 is not the library's to close */
}
END_TEST

/* Every source into every type it may go to, read back: equal to the rounded source. */
START_TEST(what_is_written_is_read)
{
    const et_tensor_out tensors[] = {
        {"d64", ET_F64, 1, {6}, DOUBLES, ET_FROM_F64},
        {"d32", ET_F32, 1, {6}, DOUBLES, ET_FROM_F64},
        {"d16", ET_F16, 1, {6}, DOUBLES, ET_FROM_F64},
        {"db16", ET_BF16, 1, {6}, DOUBLES, ET_FROM_F64},
        {"f64", ET_F64, 1, {4}, FLOATS, ET_FROM_F32},
        {"f32", ET_F32, 1, {4}, FLOATS, ET_FROM_F32},
        {"f16", ET_F16, 1, {4}, FLOATS, ET_FROM_F32},
        {"fb16", ET_BF16, 1, {4}, FLOATS, ET_FROM_F32},
        {"i32", ET_I32, 2, {2, 2}, INTS, ET_FROM_I32},
        {"i64", ET_I64, 1, {4}, INTS, ET_FROM_I32},
        {"u8", ET_U8, 3, {1, 3, 1}, BYTES, ET_FROM_U8},
        {"bool", ET_BOOL, 1, {3}, BYTES, ET_FROM_U8},
        {"none", ET_F64, 3, {5, 0, 2}, NULL, ET_FROM_F64},
        {"nothing", ET_BOOL, 1, {0}, NULL, ET_FROM_U8},
    };
    const char *const metadata[] = {"key", "value", "empty", "", NULL};
    assert_writes(tensors, COUNT(tensors), metadata);
    et_tensor_file file;
    assert_opens(&file);
    ck_assert_uint_eq(file.tensor_count, COUNT(tensors));
    ck_assert_uint_eq(file.data_start % 8, 0);
    ck_assert_str_eq(et_tensor_file_metadata(&file, "key"), "value");
    ck_assert_str_eq(et_tensor_file_metadata(&file, "empty"), "");
    ck_assert_ptr_null(et_tensor_file_metadata(&file, "value"));
    for (size_t t = 0; t < COUNT(tensors); t++) {
        const et_tensor_out *want = &tensors[t];
        const et_tensor_info *got = et_tensor_file_find(&file, want->name);
        ck_assert_ptr_nonnull(got);
        ck_assert_int_eq(got->dtype, want->dtype);
        ck_assert_uint_eq(got->rank, want->rank);
        size_t count = 1;
        for (size_t i = 0; i < want->rank; i++) {
            ck_assert_uint_eq(got->shape[i], want->shape[i]);
            count *= want->shape[i];
        }
        ck_assert_uint_eq(got->count, count);
        ck_assert_uint_eq(got->bytes, count * et_dtype_size(got->dtype));
        ck_assert_uint_eq(got->offset % et_dtype_size(got->dtype), 0); /* aligned */
        double values[8] = {0};
        et_error error;
        ck_assert_int_eq(et_tensor_file_read(&file, got, 0, count, values, &error), ET_OK);
        ck_assert_str_eq(error.text, "");
        for (size_t i = 0; i < count; i++) {
            double v = want->source == ET_FROM_F64   ? DOUBLES[i]
                       : want->source == ET_FROM_F32 ? (double)FLOATS[i]
                       : want->source == ET_FROM_I32 ? INTS[i]
                                                     : BYTES[i];
            if (et_dtype_significand(want->dtype) > 0) v = et_round_to_dtype(v, want->dtype);
            if (want->dtype == ET_BOOL) v = v != 0;
            ck_assert_msg(values[i] == v, "%s[%zu]: got %a, want %a", want->name, i, values[i], v);
            ck_assert(!signbit(values[i]) == !signbit(v));
        }
    }
    et_tensor_file_close(&file);
}
END_TEST

START_TEST(the_order_of_the_array_does_not_matter)
{
    enum { T = 9 };
    et_tensor_out tensors[T] = {{"b.f64", ET_F64, 1, {2}, DOUBLES, ET_FROM_F64},
                                {"a.u8", ET_U8, 1, {3}, BYTES, ET_FROM_U8},
                                {"a", ET_I32, 1, {3}, INTS, ET_FROM_I32},
                                {"a.a", ET_F32, 1, {3}, FLOATS, ET_FROM_F32},
                                {"B", ET_F32, 1, {1}, DOUBLES, ET_FROM_F64},
                                {"c", ET_F16, 1, {5}, DOUBLES, ET_FROM_F64},
                                {"", ET_I64, 1, {1}, INTS, ET_FROM_I32},
                                {"c2", ET_BF16, 1, {1}, FLOATS, ET_FROM_F32},
                                {"0", ET_BOOL, 1, {3}, BYTES, ET_FROM_U8}};
    static const char *const sorted[T] = {"", "b.f64", "B", "a", "a.a", "c", "c2", "0", "a.u8"};
    static unsigned char first[4096], again[4096];
    assert_writes(tensors, T, NULL);
    size_t size = get_bytes(first, sizeof first);
    et_tensor_file file;
    assert_opens(&file);
    for (int i = 0; i < T; i++) {
        ck_assert_str_eq(file.tensors[i].name, sorted[i]);
        ck_assert_uint_eq(file.tensors[i].offset % et_dtype_size(file.tensors[i].dtype), 0);
    }
    et_tensor_file_close(&file);
    et_stream stream = et_stream_open(4, "order");
    for (uint64_t trial = 0; trial < 20; trial++) {
        for (uint64_t i = T - 1; i > 0; i--) { /* Fisher and Yates */
            size_t j = (size_t)(et_uniform(stream, trial * T + i, 0) * (double)(i + 1));
            et_tensor_out swap = tensors[i];
            tensors[i] = tensors[j];
            tensors[j] = swap;
        }
        assert_writes(tensors, T, NULL);
        ck_assert_uint_eq(get_bytes(again, sizeof again), size);
        ck_assert_mem_eq(again, first, size);
    }
}
END_TEST

static void assert_not_written(const et_tensor_out *tensors, size_t count,
                               const char *const *metadata, const char *message)
{
    et_error error;
    char expected[5000];
    snprintf(expected, sizeof expected, "%s: %s", path, message);
    put_bytes("as it was", 9);
    ck_assert_int_eq(et_tensor_file_write(path, tensors, count, metadata, &error), ET_EINVAL);
    ck_assert_str_eq(error.text, expected);
    unsigned char kept[16];
    ck_assert_uint_eq(get_bytes(kept, sizeof kept), 9);
    ck_assert_mem_eq(kept, "as it was", 9);
    ck_assert_int_eq(entries_in_folder(), 1);
}

START_TEST(contradictory_tensors_are_not_written)
{
    static char long_name[ET_MAX_TENSOR_NAME + 2];
    memset(long_name, 'n', sizeof long_name - 1);
    const struct {
        et_tensor_out tensor;
        const char *message;
    } bad[] = {
        {{NULL, ET_F64, 1, {1}, DOUBLES, ET_FROM_F64},
         "a tensor without a name, or named __metadata__; name it"},
        {{"__metadata__", ET_F64, 1, {1}, DOUBLES, ET_FROM_F64},
         "a tensor without a name, or named __metadata__; name it"},
        {{long_name, ET_F64, 1, {1}, DOUBLES, ET_FROM_F64},
         "tensor 'nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn...': a name of 256 bytes; at most 255 "
         "are supported"},
        {{"t", ET_F64, 1, {1}, NULL, ET_FROM_F64}, "tensor 't': has a shape but no values"},
        {{"t", ET_F64, 9, {1}, DOUBLES, ET_FROM_F64}, "tensor 't': rank 9; at most 8 is supported"},
        {{"t", ET_F64, 2, {SIZE_MAX / 4, 8}, DOUBLES, ET_FROM_F64},
         "tensor 't': the product of the shape exceeds the address space"},
        {{"t", ET_F64, 1, {SIZE_MAX / 4}, DOUBLES, ET_FROM_F64},
         "tensor 't': the product of the shape exceeds the address space"},
        {{"t", ET_F64, 2, {0, SIZE_MAX}, DOUBLES, ET_FROM_F64},
         "tensor 't': the product of the shape exceeds the address space"},
        {{"\xff", ET_F64, 1, {1}, DOUBLES, ET_FROM_F64}, "'\xff' or its value is not valid UTF-8"},
        {{"same", ET_I32, 1, {1}, INTS, ET_FROM_I32},
         "'same' is given twice; names must be unique"},
    };
    for (size_t i = 0; i < COUNT(bad); i++) {
        const et_tensor_out two[] = {{"same", ET_F64, 1, {1}, DOUBLES, ET_FROM_F64}, bad[i].tensor};
        assert_not_written(two, 2, NULL, bad[i].message);
    }
    /* Sources and types: exactly these go together. */
    static const char allowed[4][ET_DTYPE_COUNT + 1] = {[ET_FROM_F64] = "y..y..yy.......",
                                                        [ET_FROM_F32] = "y..y..yy.......",
                                                        [ET_FROM_I32] = ".y..y..........",
                                                        [ET_FROM_U8] = "...........yy.."};
    for (int s = 0; s < 4; s++)
        for (int d = 0; d < ET_DTYPE_COUNT; d++) {
            et_tensor_out one = {"t", (et_dtype)d, 1, {1}, DOUBLES, (et_source)s};
            et_error error;
            et_status status = et_tensor_file_write(path, &one, 1, NULL, &error);
            ck_assert_int_eq(status, allowed[s][d] == 'y' ? ET_OK : ET_EINVAL);
        }
    et_tensor_out one = {"t", ET_F32, 1, {1}, INTS, ET_FROM_I32};
    assert_not_written(&one, 1, NULL,
                       "tensor 't': I32 values cannot be stored as F32; floats go to F64, F32, F16 "
                       "or BF16, I32 to I32 or I64, U8 to U8 or BOOL");
    const char *const odd[] = {"a", "b", "c", NULL}, *const twice[] = {"a", "b", "a", "d", NULL},
                      *const wild[] = {"a", "\xc0\x80", NULL};
    assert_not_written(NULL, 0, odd, "metadata 'c' has no value");
    assert_not_written(NULL, 0, twice, "'a' is given twice; names must be unique");
    assert_not_written(NULL, 0, wild, "'a' or its value is not valid UTF-8");
    static char blob[4096];
    const et_tensor_out huge[] = {{"p", ET_U8, 1, {(size_t)INT64_MAX}, blob, ET_FROM_U8},
                                  {"q", ET_U8, 1, {1}, blob, ET_FROM_U8}};
    assert_not_written(huge, 2, NULL, "the tensors together exceed 2^63 bytes");
}
END_TEST

/* ---- disks and places ---- */

/* RLIMIT_FSIZE makes write fail after some bytes, as a full disk does. */
START_TEST(a_full_disk_leaves_everything_as_it_was)
{
    enum { N = 50000 };
    static double values[N];
    const et_tensor_out tensor = {"t", ET_F64, 1, {N}, values, ET_FROM_F64};
    struct rlimit before, low;
    et_error error;
    put_bytes("as it was", 9);
    ck_assert_int_eq(getrlimit(RLIMIT_FSIZE, &before), 0);
    void (*handler)(int) = signal(SIGXFSZ, SIG_IGN);
    const rlim_t limits[] = {0, 50, 4096, 100001, 8 * N};
    for (size_t i = 0; i < COUNT(limits); i++) {
        low = before;
        low.rlim_cur = limits[i];
        ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &low), 0);
        et_status status = et_tensor_file_write(path, &tensor, 1, NULL, &error);
        ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &before), 0);
        ck_assert_int_eq(status, ET_EIO);
        char expected[5000];
        snprintf(expected, sizeof expected, "%s: cannot write: %s; nothing was kept", path,
                 strerror(EFBIG));
        ck_assert_str_eq(error.text, expected);
        unsigned char kept[16];
        ck_assert_uint_eq(get_bytes(kept, sizeof kept), 9);
        ck_assert_int_eq(entries_in_folder(), 1);
    }
    signal(SIGXFSZ, handler);
}
END_TEST

static void assert_write_fails(const char *to, const char *message)
{
    const et_tensor_out tensor = {"t", ET_F64, 1, {1}, DOUBLES, ET_FROM_F64};
    et_error error;
    char expected[6000];
    snprintf(expected, sizeof expected, "%s: %s", to, message);
    ck_assert_int_eq(et_tensor_file_write(to, &tensor, 1, NULL, &error), ET_EIO);
    ck_assert_str_eq(error.text, expected);
}

START_TEST(places_that_cannot_be_written_are_refused)
{
    int descriptors = open_descriptors();
    char other[5000];
    snprintf(other, sizeof other, "%s/missing/f", folder);
    assert_write_fails(other, "cannot open its folder: No such file or directory; create it first");
    put_bytes("a file", 6);
    snprintf(other, sizeof other, "%s/f", path);
    assert_write_fails(other, "cannot open its folder: Not a directory; create it first");
    assert_write_fails(folder, "exists and is not a regular file; choose another name");
    assert_write_fails("/dev/null", "exists and is not a regular file; choose another name");
    /* procfs takes no new files, whoever asks. */
    et_error error;
    ck_assert_int_eq(et_tensor_file_write("/proc/etref", NULL, 0, NULL, &error), ET_EIO);
    ck_assert(
        strncmp(error.text, "/proc/etref: cannot create the temporary file beside it: ", 57) == 0);
    if (geteuid() != 0) { /* root may write anywhere */
        ck_assert_int_eq(chmod(folder, 0500), 0);
        snprintf(other, sizeof other, "%s/f", folder);
        assert_write_fails(other, "cannot create the temporary file beside it: Permission denied");
        ck_assert_int_eq(chmod(folder, 0700), 0);
    }
    /* The temporary file cannot be replaced if a folder has its name. */
    char partial[5000];
    ck_assert_int_eq(et_partial_path(path, partial, sizeof partial), 0);
    ck_assert_int_eq(mkdir(partial, 0700), 0);
    assert_write_fails(path, "cannot create the temporary file beside it: File exists");
    ck_assert_int_eq(rmdir(partial), 0);
    ck_assert_int_eq(open_descriptors(), descriptors);
}
END_TEST

START_TEST(a_stale_temporary_file_is_no_obstacle)
{
    char partial[5000];
    ck_assert_int_eq(et_partial_path(path, partial, sizeof partial), 0);
    FILE *stale = fopen(partial, "w");
    ck_assert_ptr_nonnull(stale);
    fputs("left behind", stale);
    fclose(stale);
    assert_writes(NULL, 0, NULL);
    ck_assert_int_eq(entries_in_folder(), 1);
    unsigned char got[32];
    ck_assert_uint_eq(get_bytes(got, sizeof got), 16);

    /* Its name, and the room that it needs. */
    char expected[5000], exact[64];
    int length = snprintf(expected, sizeof expected, "%s.%ld-", path, (long)getpid());
    ck_assert_int_eq(strncmp(partial, expected, (size_t)length), 0);
    ck_assert_uint_eq(strspn(partial + length, "0123456789abcdef"), 16);
    ck_assert_str_eq(partial + length + 16, ".part");
    length = snprintf(expected, sizeof expected, "f.%ld-0123456789abcdef.part", (long)getpid());
    ck_assert_int_eq(et_partial_path("f", exact, (size_t)length + 1), 0);
    ck_assert_int_eq(et_partial_path("f", exact, (size_t)length), -1);
    ck_assert_int_eq(et_partial_path("f", exact, 0), -1);
}
END_TEST

START_TEST(a_path_without_a_folder_is_in_the_current_one)
{
    char back[4096];
    ck_assert_ptr_nonnull(getcwd(back, sizeof back));
    ck_assert_int_eq(chdir(folder), 0);
    et_status status = et_tensor_file_write("file.safetensors", NULL, 0, NULL, NULL);
    ck_assert_int_eq(chdir(back), 0);
    ck_assert_int_eq(status, ET_OK);
    et_tensor_file file;
    assert_opens(&file);
    et_tensor_file_close(&file);
}
END_TEST

/* A symbolic link is replaced, and what it pointed to is left alone. */
START_TEST(a_link_is_replaced_not_followed)
{
    char target[5000];
    snprintf(target, sizeof target, "%s/target", folder);
    FILE *file = fopen(target, "w");
    ck_assert_ptr_nonnull(file);
    fclose(file);
    ck_assert_int_eq(symlink(target, path), 0);
    assert_writes(NULL, 0, NULL);
    struct stat facts;
    ck_assert_int_eq(lstat(path, &facts), 0);
    ck_assert(S_ISREG(facts.st_mode) && facts.st_size == 16);
    ck_assert_int_eq(stat(target, &facts), 0);
    ck_assert_int_eq((int)facts.st_size, 0);
    ck_assert_int_eq(unlink(target), 0);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("safetensors write");
    TCase *tensors = add_case(suite, "tensors"), *places = add_case(suite, "places");
    tcase_add_checked_fixture(tensors, make_folder, remove_folder);
    tcase_add_test(tensors, a_file_is_what_the_format_says_byte_by_byte);
    tcase_add_test(tensors, nothing_is_a_file_too);
    tcase_add_test(tensors, what_is_written_is_read);
    tcase_add_test(tensors, the_order_of_the_array_does_not_matter);
    tcase_add_test(tensors, contradictory_tensors_are_not_written);
    tcase_add_checked_fixture(places, make_folder, remove_folder);
    tcase_add_test(places, a_full_disk_leaves_everything_as_it_was);
    tcase_add_test(places, places_that_cannot_be_written_are_refused);
    tcase_add_test(places, a_stale_temporary_file_is_no_obstacle);
    tcase_add_test(places, a_path_without_a_folder_is_in_the_current_one);
    tcase_add_test(places, a_link_is_replaced_not_followed);
    return run_suite(suite);
}
