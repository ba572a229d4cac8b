/* test_safetensors_read.c: the reader of safetensors files.
 *
 * Every rule of the format has a file that breaks it and the message that it must give; what is odd
 * but right is read. Most files are spelt out here, so that the writer (test_safetensors_write.c) has
 * no part in them. Failing memory is in test_alloc.c.
 */
#include "etref/random.h"
#include "tests/check_main.h"
#include "tests/tensor_files.h"

#include <stdint.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- windows into a tensor ---- */

START_TEST(tensors_larger_than_a_chunk_are_read_in_any_window)
{
    enum { N = 40001 };
    static double values[N], back[N];
    et_stream stream = et_stream_open(3, "large");
    for (size_t i = 0; i < N; i++) values[i] = et_normal(stream, i);
    const et_tensor_out tensors[] = {{"large", ET_F64, 1, {N}, values, ET_FROM_F64},
                                     {"half", ET_F16, 1, {N}, values, ET_FROM_F64}};
    assert_writes(tensors, 2, NULL);
    et_tensor_file file;
    et_error error;
    assert_opens(&file);
    const et_tensor_info *large = et_tensor_file_find(&file, "large");
    const et_tensor_info *half = et_tensor_file_find(&file, "half");
    ck_assert_int_eq(et_tensor_file_read(&file, large, 0, N, back, NULL), ET_OK);
    ck_assert_mem_eq(back, values, sizeof values);
    ck_assert_int_eq(et_tensor_file_read(&file, half, 0, N, back, NULL), ET_OK);
    for (size_t i = 0; i < N; i++) ck_assert(back[i] == et_round_to_dtype(values[i], ET_F16));
    for (size_t first = 0; first < N; first += 997) {
        size_t count = (N - first) * 2 / 3;
        back[count] = -77;
        ck_assert_int_eq(et_tensor_file_read(&file, large, first, count, back, NULL), ET_OK);
        ck_assert_mem_eq(back, values + first, count * sizeof *back);
        ck_assert(back[count] == -77);
    }
    /* None, at the very end; one too many; so many that first + count overflows. */
    back[0] = -77;
    ck_assert_int_eq(et_tensor_file_read(&file, large, N, 0, back, NULL), ET_OK);
    ck_assert_int_eq(et_tensor_file_read(&file, large, 1, N, back, &error), ET_EINVAL);
    ck_assert_int_eq(et_tensor_file_read(&file, large, N + 1, 0, back, NULL), ET_EINVAL);
    ck_assert_int_eq(et_tensor_file_read(&file, large, 2, SIZE_MAX, back, NULL), ET_EINVAL);
    ck_assert(back[0] == -77);
    char expected[5000];
    snprintf(expected, sizeof expected,
             "%s: tensor 'large': 40001 elements from 1 on were asked for, it has 40001", path);
    ck_assert_str_eq(error.text, expected);
    /* The file shrinks after it was opened. */
    ck_assert_int_eq(truncate(path, 1000), 0);
    ck_assert_int_eq(et_tensor_file_read(&file, large, 0, N, back, &error), ET_EIO);
    snprintf(expected, sizeof expected, "%s: ends early: it became shorter while it was read",
             path);
    ck_assert_str_eq(error.text, expected);
    et_tensor_file_close(&file);
}
END_TEST

/* ---- headers spelt out ---- */

/* A file of this header (any bytes) and data; returns its size. */
static size_t put_file(const char *header, size_t length, const void *data, size_t data_bytes)
{
    size_t size = 8 + length + data_bytes;
    unsigned char *bytes = calloc(size, 1);
    ck_assert_ptr_nonnull(bytes);
    for (int i = 0; i < 8; i++) bytes[i] = (unsigned char)(length >> (8 * i));
    memcpy(bytes + 8, header, length);
    if (data != NULL) memcpy(bytes + 8 + length, data, data_bytes);
    put_bytes(bytes, size);
    free(bytes);
    return size;
}

#define JSON "the header is not valid JSON: " /* and then Jansson's words */

/* The file at `path` must be refused with this status and message (behind the path). */
static void assert_refused(et_status status, const char *message)
{
    et_tensor_file file;
    et_error error;
    char expected[5000];
    snprintf(expected, sizeof expected, "%s: %s", path, message);
    et_status got = et_tensor_file_open(&file, path, &error);
    ck_assert_msg(got == status, "got '%s', want '%s' and: %s", et_status_name(got),
                  et_status_name(status), expected);
    ck_assert(file.descriptor == -1 && file.path == NULL && file.tensors == NULL);
    if (strncmp(message, JSON, sizeof JSON - 1) == 0) /* Jansson adds the place */
        ck_assert_msg(strncmp(error.text, expected, strlen(expected)) == 0 &&
                          strstr(error.text, ", at byte ") != NULL,
                      "got: %s, want: %s ..., at byte ...", error.text, expected);
    else
        ck_assert_str_eq(error.text, expected);
    ck_assert_int_eq(et_tensor_file_open(&file, path, NULL), status); /* wants no message */
    et_tensor_file_close(&file);                                      /* harmless */
}

/* A header in C quotes; ' stands for ", to be readable. */
typedef struct bad_file {
    const char *header;
    size_t data_bytes;
    const char *message;
} bad_file;

#define T(dtype, shape, range) "{'dtype':'" dtype "','shape':" shape ",'data_offsets':" range "}"
#define UNKNOWN_DTYPES                                                                             \
    "is unknown; known: F64, F32, F16, BF16, I64, I32, I16, I8, U64, U32, U16, U8, BOOL, "         \
    "F8_E4M3, F8_E5M2"
#define NO_OBJECT "tensor 't': is not an object of dtype, shape and data_offsets"
#define NO_DTYPE  "tensor 't': dtype is missing or not a string"
#define NO_SHAPE  "tensor 't': shape is missing or not an array"
#define NO_ENTRY  "tensor 't': shape[1] is not a non-negative integer"
#define NO_RANGE  "tensor 't': data_offsets is missing or not two non-negative integers"
#define OVERFLOW  "tensor 't': the product of the shape exceeds the address space"
#define NESTS     "the header nests brackets "

/* clang-format off */
static const bad_file BAD_FILES[] = {
    /* the header's frame */
    {"", 0, "the header does not start with '{': not safetensors?"},
    {" {}", 0, "the header does not start with '{': not safetensors?"},
    {"[]", 0, "the header does not start with '{': not safetensors?"},
    {"{}\n", 0, "the header does not end with '}' and spaces: only spaces may pad it"},
    {"{} \t ", 0, "the header does not end with '}' and spaces: only spaces may pad it"},
    {"{", 0, "the header does not end with '}' and spaces: only spaces may pad it"},
    {"{}x", 0, "the header does not end with '}' and spaces: only spaces may pad it"},
    {"{} {}", 0, JSON "end of file expected near '{'"},
    {"{}}", 0, JSON "end of file expected near '}'"},
    {"{[[[]]]}", 0, NESTS "within an array, at byte 2"},
    {"{'t':{'shape':[[]]}}", 0, NESTS "within an array, at byte 15"},
    {"{'t':[0,{}]}", 0, NESTS "within an array, at byte 8"},
    {"{'t':{'a':[],'b':{'c':{}}}}", 0, NESTS "too deep, at byte 22"},
    {"{'}{[\\'{[{[':0}", 0, "tensor '}{[\"{[{[': is not an object of dtype, shape and data_offsets"},
    /* JSON */
    {"{'t'}", 0, JSON "':' expected near '}'"},
    {"{'t':" T("F64", "[]", "[0,8]") ",}", 8, JSON "string or '}' expected near '}'"},
    {"{'t':{'dtype':NaN}}", 0, JSON "invalid token near 'NaN'"},
    {"{'t':{'shape':[Infinity]}}", 0, JSON "invalid token near 'Infinity'"},
    {"{'t':{'shape':[01]}}", 0, JSON "invalid token near '0'"},
    {"{'t':{'shape':[99999999999999999999]}}", 0, JSON "too big integer"},
    {"{'\\u0000':{}}", 0, JSON "NUL byte in object key"},
    {"{'__metadata__':{'a':'\\u0000'}}", 0, JSON "\\u0000 is not allowed"},
    {"{'\xff':{}}", 0, JSON "unable to decode byte 0xff"},
    {"{'t':{},'t':{}}", 0, JSON "duplicate object key near '\"t\"'"},
    {"{'t':{'shape':[],'shape':[]}}", 0, JSON "duplicate object key near '\"shape\"'"},
    {"{'__metadata__':{},'__metadata__':{}}", 0, JSON "duplicate object key near '\"__metadata__\"'"},
    {"{'__metadata__':{'a':'','a':''}}", 0, JSON "duplicate object key near '\"a\"'"},
    /* metadata */
    {"{'__metadata__':[]}", 0, "__metadata__ is not an object of strings"},
    {"{'__metadata__':'x'}", 0, "__metadata__ is not an object of strings"},
    {"{'__metadata__':null}", 0, "__metadata__ is not an object of strings"},
    {"{'__metadata__':{'a':'b','c':1}}", 0, "__metadata__: 'c' is not a string"},
    {"{'__metadata__':{'a':{}}}", 0, "__metadata__: 'a' is not a string"},
    {"{'__metadata__':{'a':null}}", 0, "__metadata__: 'a' is not a string"},
    /* a tensor's object */
    {"{'t':1}", 0, NO_OBJECT},
    {"{'t':null}", 0, NO_OBJECT},
    {"{'t':[]}", 0, NO_OBJECT},
    {"{'t':{}}", 0, NO_DTYPE},
    {"{'t':{'dtype':'F64'}}", 0, NO_SHAPE},
    {"{'t':{'dtype':'F64','shape':[]}}", 8, NO_RANGE},
    {"{'t':{'shape':[],'data_offsets':[0,8]}}", 8, NO_DTYPE},
    {"{'t':{'dtype':'F64','shape':[],'data_offsets':[0,8],'stride':[1]}}", 8, "tensor 't': unknown key 'stride'; allowed: dtype, shape, data_offsets"},
    {"{'t':{'dtype':'F64','Shape':[],'data_offsets':[0,8]}}", 8, "tensor 't': unknown key 'Shape'; allowed: dtype, shape, data_offsets"},
    /* dtype */
    {"{'t':" T("F63", "[]", "[0,8]") "}", 8, "tensor 't': dtype 'F63' " UNKNOWN_DTYPES},
    {"{'t':" T("f64", "[]", "[0,8]") "}", 8, "tensor 't': dtype 'f64' " UNKNOWN_DTYPES},
    {"{'t':" T("", "[]", "[0,8]") "}", 8, "tensor 't': dtype '' " UNKNOWN_DTYPES},
    {"{'t':" T("F64\\n and much more than anybody wants to read", "[]", "[0,8]") "}", 8, "tensor 't': dtype 'F64? and much more t' " UNKNOWN_DTYPES},
    {"{'t':{'dtype':0,'shape':[],'data_offsets':[0,8]}}", 8, NO_DTYPE},
    {"{'t':{'dtype':null,'shape':[],'data_offsets':[0,8]}}", 8, NO_DTYPE},
    /* shape */
    {"{'t':" T("F64", "1", "[0,8]") "}", 8, NO_SHAPE},
    {"{'t':" T("F64", "{}", "[0,8]") "}", 8, NO_SHAPE},
    {"{'t':" T("F64", "null", "[0,8]") "}", 8, NO_SHAPE},
    {"{'t':" T("F64", "[1,1.0]", "[0,8]") "}", 8, NO_ENTRY},
    {"{'t':" T("F64", "[1,1e0]", "[0,8]") "}", 8, NO_ENTRY},
    {"{'t':" T("F64", "[1,true]", "[0,8]") "}", 8, NO_ENTRY},
    {"{'t':" T("F64", "[1,'1']", "[0,8]") "}", 8, NO_ENTRY},
    {"{'t':" T("F64", "[1,null]", "[0,8]") "}", 8, NO_ENTRY},
    {"{'t':" T("F64", "[1,-1]", "[0,8]") "}", 8, NO_ENTRY},
    {"{'t':" T("F64", "[1,-9223372036854775808]", "[0,8]") "}", 8, NO_ENTRY},
    {"{'t':" T("F64", "[1,1,1,1,1,1,1,1,1]", "[0,8]") "}", 8, "tensor 't': rank 9; at most 8 is supported"},
    {"{'t':" T("F64", "[4294967296,4294967296]", "[0,8]") "}", 8, OVERFLOW},
    {"{'t':" T("F64", "[4294967296,4294967296,0]", "[0,0]") "}", 0, OVERFLOW},
    {"{'t':" T("F64", "[4611686018427387904]", "[0,8]") "}", 8, OVERFLOW},
    {"{'t':" T("F64", "[1152921504606846976]", "[0,9223372036854775807]") "}", 8, "tensor 't': data_offsets hold 9223372036854775807 bytes, dtype and shape need 9223372036854775808"},
    /* data_offsets */
    {"{'t':" T("F64", "[]", "8") "}", 8, NO_RANGE},
    {"{'t':" T("F64", "[]", "[]") "}", 8, NO_RANGE},
    {"{'t':" T("F64", "[]", "[8]") "}", 8, NO_RANGE},
    {"{'t':" T("F64", "[]", "[0,8,8]") "}", 8, NO_RANGE},
    {"{'t':" T("F64", "[]", "[0,8.0]") "}", 8, NO_RANGE},
    {"{'t':" T("F64", "[]", "[false,8]") "}", 8, NO_RANGE},
    {"{'t':" T("F64", "[]", "[-8,0]") "}", 8, NO_RANGE},
    {"{'t':" T("F64", "[]", "[8,0]") "}", 8, "tensor 't': data_offsets [8, 0) run backwards"},
    {"{'t':" T("F64", "[]", "[0,7]") "}", 7, "tensor 't': data_offsets hold 7 bytes, dtype and shape need 8"},
    {"{'t':" T("F64", "[2]", "[0,8]") "}", 8, "tensor 't': data_offsets hold 8 bytes, dtype and shape need 16"},
    {"{'t':" T("F64", "[0]", "[0,8]") "}", 8, "tensor 't': data_offsets hold 8 bytes, dtype and shape need 0"},
    /* coverage of the data */
    {"{}", 1, "the tensors need 0 bytes of data, the file has 1: something follows the last tensor"},
    {"{'t':" T("U8", "[2]", "[0,2]") "}", 3, "the tensors need 2 bytes of data, the file has 3: something follows the last tensor"},
    {"{'t':" T("U8", "[2]", "[0,2]") "}", 1, "the tensors need 2 bytes of data, the file has 1: it is cut short"},
    {"{'t':" T("U8", "[9223372036854775807]", "[0,9223372036854775807]") "}", 1, "the tensors need 9223372036854775807 bytes of data, the file has 1: it is cut short"},
    {"{'t':" T("U8", "[2]", "[1,3]") "}", 3, "tensor 't': begins at byte 1 of the data, its predecessor ends at 0: a hole"},
    {"{'a':" T("U8", "[2]", "[0,2]") ",'t':" T("U8", "[1]", "[3,4]") "}", 4, "tensor 't': begins at byte 3 of the data, its predecessor ends at 2: a hole"},
    {"{'t':" T("U8", "[2]", "[1,3]") ",'a':" T("U8", "[2]", "[0,2]") "}", 3, "tensor 't': begins at byte 1 of the data, its predecessor ends at 2: an overlap"},
    {"{'a':" T("U8", "[2]", "[0,2]") ",'t':" T("U8", "[2]", "[0,2]") "}", 2, "tensor 't': begins at byte 0 of the data, its predecessor ends at 2: an overlap"},
    {"{'a':" T("U8", "[2]", "[0,2]") ",'t':" T("U8", "[0]", "[1,1]") "}", 2, "tensor 't': begins at byte 1 of the data, its predecessor ends at 2: an overlap"},
    {"{'t':" T("U8", "[0]", "[1,1]") "}", 0, "tensor 't': begins at byte 1 of the data, its predecessor ends at 0: a hole"},
};
/* clang-format on */

/* Copies a header, turning ' into ". */
static size_t quoted(char *out, const char *header)
{
    size_t length = strlen(header);
    for (size_t i = 0; i < length; i++) out[i] = header[i] == '\'' ? '"' : header[i];
    return length;
}

START_TEST(a_file_that_breaks_a_rule_is_refused)
{
    const bad_file *bad = &BAD_FILES[_i];
    int descriptors = open_descriptors();
    char header[1024];
    size_t length = quoted(header, bad->header);
    put_file(header, length, NULL, bad->data_bytes);
    assert_refused(ET_EINVAL, bad->message);
    ck_assert_int_eq(open_descriptors(), descriptors);
}
END_TEST

START_TEST(a_file_that_is_odd_but_right_is_read)
{
    static const char *const headers[] = {
        "{}",
        "{}        ",
        "{ }",
        "{'__metadata__':{}}",
        "{'__metadata__':{'':'','\\n':'\\\\\\''}}",
        /* any order, white space within, offsets unaligned */
        "{ 'z' : {'data_offsets' :[ 1 , 9 ],\n'shape':[1,1],'dtype':'F64'},"
        "'a':" T("U8", "[]", "[0,1]") "}   ",
        /* tensors without bytes, anywhere on a seam */
        "{'p':" T("U8", "[9]", "[0,9]") ",'o':" T("F64", "[0,7]", "[0,0]") ",'q':" T(
            "I8", "[0]", "[9,9]") ",'':" T("I8", "[1,0]", "[9,9]") "}",
        "{'e4m3':" T("F8_E4M3", "[4]", "[0,4]") ",'e5m2':" T("F8_E5M2", "[5]", "[4,9]") "}",
    };
    static const size_t tensors[] = {0, 0, 0, 0, 0, 2, 4, 2};
    const unsigned char data[9] = {7, 0, 0, 0, 0, 0, 0, 0xf8, 0x3f};
    for (size_t i = 0; i < COUNT(headers); i++) {
        char header[512];
        size_t length = quoted(header, headers[i]);
        put_file(header, length, data, tensors[i] > 0 ? sizeof data : 0);
        et_tensor_file file;
        assert_opens(&file);
        ck_assert_uint_eq(file.tensor_count, tensors[i]);
        if (i == 4) ck_assert_str_eq(et_tensor_file_metadata(&file, "\n"), "\\\"");
        double value = 0;
        if (i == 5) {
            const et_tensor_info *z = et_tensor_file_find(&file, "z");
            ck_assert_int_eq(et_tensor_file_read(&file, z, 0, 1, &value, NULL), ET_OK);
            ck_assert(value == 1.5);
            ck_assert_str_eq(file.tensors[0].name, "a"); /* in order of offset */
        }
        if (i == 7) {
            et_error error;
            ck_assert_int_eq(et_tensor_file_read(&file, file.tensors, 0, 1, &value, &error),
                             ET_EINVAL);
            char expected[5000];
            snprintf(expected, sizeof expected,
                     "%s: tensor 'e4m3': values of type F8_E4M3 cannot be read; store F16, BF16 or "
                     "F32",
                     path);
            ck_assert_str_eq(error.text, expected);
        }
        et_tensor_file_close(&file);
    }
}
END_TEST

START_TEST(names_may_have_255_bytes_and_no_more)
{
    for (size_t length = 255; length <= 256; length++) {
        char header[512], name[257];
        memset(name, 'n', length);
        name[length] = '\0';
        int written =
            snprintf(header, sizeof header,
                     "{\"%s\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}", name);
        put_file(header, (size_t)written, NULL, 0);
        if (length == 256) {
            assert_refused(ET_EINVAL, "tensor 'nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn...': a "
                                      "name of 256 bytes; at most 255 are supported");
        } else {
            et_tensor_file file;
            assert_opens(&file);
            ck_assert_ptr_nonnull(et_tensor_file_find(&file, name));
            et_tensor_file_close(&file);
        }
    }
}
END_TEST

/* A small valid file, cut after each of its bytes, and with one byte too many. */
START_TEST(a_file_cut_anywhere_is_refused)
{
    static unsigned char whole[1024];
    char message[256];
    const float floats[] = {1.5f, -2.5f, 0.1f};
    const uint8_t bytes[] = {0, 1, 255};
    const et_tensor_out tensors[] = {{"a", ET_F32, 1, {3}, floats, ET_FROM_F32},
                                     {"b", ET_U8, 1, {3}, bytes, ET_FROM_U8}};
    assert_writes(tensors, 2, NULL);
    size_t size = get_bytes(whole, sizeof whole);
    size_t header = whole[0];
    ck_assert_uint_eq(size, 8 + header + 15);
    for (size_t cut = 0; cut < size; cut++) {
        if (cut < 8)
            snprintf(message, sizeof message,
                     "%zu bytes are too few: a safetensors file starts with the 8-byte length of "
                     "its header",
                     cut);
        else if (cut < 8 + header)
            snprintf(message, sizeof message,
                     "a header of %zu bytes is announced, %zu follow: the file is cut short or not "
                     "safetensors",
                     header, cut - 8);
        else
            snprintf(message, sizeof message,
                     "the tensors need 15 bytes of data, the file has %zu: it is cut short",
                     cut - 8 - header);
        put_bytes(whole, cut);
        assert_refused(ET_EINVAL, message);
    }
    whole[size] = 0;
    put_bytes(whole, size + 1);
    assert_refused(ET_EINVAL, "the tensors need 15 bytes of data, the file has 16: something "
                              "follows the last tensor");
}
END_TEST

/* The announced length of the header: huge, past the end by one, and one too short. */
START_TEST(a_length_that_lies_is_refused)
{
    static const struct {
        unsigned char length[8];
        const char *message;
    } lies[] = {
        {{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff},
         "a header of 18446744073709551615 bytes exceeds the format's 100000000: not a safetensors "
         "file?"},
        {{0, 0, 0, 0, 0, 0, 0, 0x80},
         "a header of 9223372036854775808 bytes exceeds the format's 100000000: not a safetensors "
         "file?"},
        {{0x01, 0xe1, 0xf5, 0x05},
         "a header of 100000001 bytes exceeds the format's 100000000: not a safetensors file?"},
        {{0x00, 0xe1, 0xf5, 0x05},
         "a header of 100000000 bytes is announced, 4 follow: the file is cut short or not "
         "safetensors"},
        {{5},
         "a header of 5 bytes is announced, 4 follow: the file is cut short or not safetensors"},
        {{1}, "the header does not end with '}' and spaces: only spaces may pad it"},
        {{0}, "the header does not start with '{': not safetensors?"},
        {{3},
         "the tensors need 0 bytes of data, the file has 1: something follows the last "
         "tensor"},
    };
    for (size_t i = 0; i < COUNT(lies); i++) {
        unsigned char bytes[12] = {0, 0, 0, 0, 0, 0, 0, 0, '{', '}', ' ', ' '};
        memcpy(bytes, lies[i].length, 8);
        put_bytes(bytes, sizeof bytes);
        assert_refused(ET_EINVAL, lies[i].message);
    }
}
END_TEST

/* A pipe must not make the reader wait; nothing but a regular file is read. */
START_TEST(what_is_no_file_is_refused_at_once)
{
    ck_assert_int_eq(mkfifo(path, 0600), 0);
    assert_refused(ET_EIO, "is a pipe, device or socket; name a safetensors file");
    unlink(path);
    ck_assert_int_eq(mkdir(path, 0700), 0);
    assert_refused(ET_EIO, "is a folder; name a safetensors file");
    ck_assert_int_eq(rmdir(path), 0);
    ck_assert_int_eq(symlink(path, path), 0);
    assert_refused(ET_EIO, "cannot open: Too many levels of symbolic links");
    unlink(path);
    assert_refused(ET_EIO, "cannot open: No such file or directory");
    et_tensor_file file;
    et_error error;
    ck_assert_int_eq(et_tensor_file_open(&file, "/dev/zero", &error), ET_EIO);
    ck_assert_str_eq(error.text, "/dev/zero: is a pipe, device or socket; name a safetensors file");
    ck_assert_int_eq(et_tensor_file_open(&file, "", &error), ET_EIO);
}
END_TEST

START_TEST(of_a_long_path_the_message_shows_the_end)
{
    char missing[1000];
    memset(missing, '/', sizeof missing);
    memcpy(missing + sizeof missing - 8, "missing", 8);
    et_tensor_file file;
    et_error error;
    ck_assert_int_eq(et_tensor_file_open(&file, missing, &error), ET_EIO);
    ck_assert_str_eq(error.text + 153, "missing: cannot open: No such file or directory");
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("safetensors read");
    TCase *reading = add_case(suite, "reading");
    tcase_add_checked_fixture(reading, make_folder, remove_folder);
    tcase_add_test(reading, tensors_larger_than_a_chunk_are_read_in_any_window);
    tcase_add_loop_test(reading, a_file_that_breaks_a_rule_is_refused, 0, COUNT(BAD_FILES));
    tcase_add_test(reading, a_file_that_is_odd_but_right_is_read);
    tcase_add_test(reading, names_may_have_255_bytes_and_no_more);
    tcase_add_test(reading, a_file_cut_anywhere_is_refused);
    tcase_add_test(reading, a_length_that_lies_is_refused);
    tcase_add_test(reading, what_is_no_file_is_refused_at_once);
    tcase_add_test(reading, of_a_long_path_the_message_shows_the_end);
    return run_suite(suite);
}
