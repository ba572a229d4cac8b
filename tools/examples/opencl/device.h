/* device.h: OpenCL as the layer's host program needs it: one device, its memory, and launches.
 *
 * Whatever fails ends the program with one line and exit status 2.
 */
#ifndef ET_EXAMPLE_DEVICE_H
#define ET_EXAMPLE_DEVICE_H

#define CL_TARGET_OPENCL_VERSION 120
#include <CL/cl.h>
#include <etref/dtype.h>

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TILE = 16, LANES = 64 }; /* as in experts.cl and router.cl */

_Noreturn static void die(const char *what, const char *why)
{
    fprintf(stderr, "test_et: %s: %s\n", what, why);
    exit(2);
}

static void check_cl(cl_int status, const char *what)
{
    char why[40];
    snprintf(why, sizeof why, "OpenCL's error %d", status);
    if (status != CL_SUCCESS) die(what, why);
}

/* Zeros. */
static void *memory(size_t count, size_t size)
{
    void *room = calloc(count ? count : 1, size);
    if (!room) die("memory", "there is no more");
    return room;
}

enum { MOST_BUFFERS = 128 };

static struct {
    cl_device_id id;
    cl_context context;
    cl_command_queue queue; /* in order: a kernel sees all that those before it wrote */
    cl_program experts, router;
    cl_program faulty; /* for faulty_kernel alone */
    const char *faulty_kernel;
    bool bf16;
    size_t count;
    cl_mem buffers[MOST_BUFFERS]; /* all that there are, for free_buffers */
} device;

/* device.id: the first GPU of any platform, or else the first device. Returns its name. */
static const char *find_device(void)
{
    static char name[100];
    cl_platform_id platforms[16];
    cl_uint count = 0;
    if (clGetPlatformIDs(16, platforms, &count) != CL_SUCCESS) count = 0;
    if (count > 16) count = 16;
    const cl_device_type wanted[] = {CL_DEVICE_TYPE_GPU, CL_DEVICE_TYPE_ALL};
    for (cl_uint i = 0; i < 2 * count && !device.id; i++)
        clGetDeviceIDs(platforms[i % count], wanted[i / count], 1, &device.id, NULL);
    if (!device.id) die("no OpenCL device", "nothing was run (tools/install-deps opencl: pocl)");
    clGetDeviceInfo(device.id, CL_DEVICE_NAME, sizeof name - 1, name, NULL);
    return name;
}

static void open_device(void)
{
    cl_int status;
    find_device();
    device.context = clCreateContext(NULL, 1, &device.id, NULL, NULL, &status);
    check_cl(status, "context");
    device.queue = clCreateCommandQueue(device.context, device.id, 0, &status);
    check_cl(status, "queue");
}

/* A program from its source. options: definitions. */
static cl_program build(const char *name, const char *source, const char *end, const char *options)
{
    cl_int status;
    size_t length = (size_t)(end - source);
    cl_program program = clCreateProgramWithSource(device.context, 1, &source, &length, &status);
    check_cl(status, name);
    /* On a CPU these sizes take less time than a compiler that optimises. */
    cl_device_type type = 0;
    clGetDeviceInfo(device.id, CL_DEVICE_TYPE, sizeof type, &type, NULL);
    char all[200];
    snprintf(all, sizeof all, "-cl-std=CL1.2%s%s",
             type & CL_DEVICE_TYPE_CPU ? " -cl-opt-disable" : "", options);
    if (clBuildProgram(program, 1, &device.id, all, NULL, NULL) == CL_SUCCESS) return program;
    static char log[4096];
    clGetProgramBuildInfo(program, device.id, CL_PROGRAM_BUILD_LOG, sizeof log - 1, log, NULL);
    die(name, log);
}

/* ---- memory of the device ---- */

typedef enum kind { FLOAT, STORED, INT, BYTE } kind; /* STORED: float or bf16 */

typedef struct buffer {
    cl_mem memory;
    size_t count;
    kind kind;
} buffer;

static size_t size_of(kind k)
{
    return k == BYTE ? 1 : k == STORED && device.bf16 ? 2 : 4;
}

/* Zeros. */
static buffer new_buffer(kind k, size_t count)
{
    cl_int status;
    buffer b = {NULL, count, k};
    size_t bytes = (count ? count : 1) * size_of(k);
    b.memory = clCreateBuffer(device.context, CL_MEM_READ_WRITE, bytes, NULL, &status);
    check_cl(status, "buffer");
    if (device.count == MOST_BUFFERS) die("buffer", "too many");
    device.buffers[device.count++] = b.memory;
    const cl_uchar zero = 0;
    status = clEnqueueFillBuffer(device.queue, b.memory, &zero, 1, 0, bytes, 0, NULL, NULL);
    check_cl(status, "buffer");
    return b;
}

static void free_buffers(void)
{
    while (device.count > 0) clReleaseMemObject(device.buffers[--device.count]);
}

static void put(buffer b, const void *from)
{
    size_t bytes = b.count * size_of(b.kind);
    if (bytes == 0) return;
    check_cl(clEnqueueWriteBuffer(device.queue, b.memory, CL_TRUE, 0, bytes, from, 0, NULL, NULL),
             "writing");
}

static void get(buffer b, void *to)
{
    size_t bytes = b.count * size_of(b.kind);
    if (bytes == 0) return;
    check_cl(clEnqueueReadBuffer(device.queue, b.memory, CL_TRUE, 0, bytes, to, 0, NULL, NULL),
             "reading");
}

/* FLOAT or STORED, rounded to it. values NULL: zeros. */
static buffer buffer_of(kind k, size_t count, const double *values)
{
    buffer b = new_buffer(k, count);
    if (!values) return b;
    size_t size = size_of(k);
    unsigned char *encoded = memory(count, size);
    for (size_t i = 0; i < count; i++)
        et_dtype_encode(values[i], size == 2 ? ET_BF16 : ET_F32, encoded + i * size);
    put(b, encoded);
    free(encoded);
    return b;
}

static buffer ints_of(size_t count, const cl_int *values)
{
    buffer b = new_buffer(INT, count);
    put(b, values);
    return b;
}

/* ---- launches ---- */

typedef struct argument {
    size_t size;
    const void *value;
} argument;

#define AT(buffer)                                                                                 \
    {                                                                                              \
        sizeof(cl_mem), &(buffer).memory                                                           \
    }
#define NONE                                                                                       \
    {                                                                                              \
        sizeof(cl_mem), NULL                                                                       \
    }
#define NUMBER(n)                                                                                  \
    {                                                                                              \
        sizeof(cl_int), &(cl_int)                                                                  \
        {                                                                                          \
            (cl_int)(n)                                                                            \
        }                                                                                          \
    }
#define REAL(x)                                                                                    \
    {                                                                                              \
        sizeof(cl_float), &(cl_float)                                                              \
        {                                                                                          \
            (cl_float)(x)                                                                          \
        }                                                                                          \
    }

static const size_t tile[3] = {TILE, TILE, 1}, lanes[3] = {LANES, 1, 1};

/* A kernel on x * y * z items, in groups of `group`; the last groups may stick out. */
static void launch(cl_program program, const char *name, const size_t group[3], size_t x, size_t y,
                   size_t z, size_t count, const argument *arguments)
{
    if (x == 0 || y == 0 || z == 0) return;
    cl_int status;
    if (device.faulty && strcmp(name, device.faulty_kernel) == 0) program = device.faulty;
    cl_kernel kernel = clCreateKernel(program, name, &status);
    check_cl(status, name);
    for (size_t i = 0; i < count; i++)
        check_cl(clSetKernelArg(kernel, (cl_uint)i, arguments[i].size, arguments[i].value), name);
    size_t grid[3] = {x, y, z};
    for (int i = 0; i < 3; i++) grid[i] = (grid[i] + group[i] - 1) / group[i] * group[i];
    status = clEnqueueNDRangeKernel(device.queue, kernel, 3, NULL, grid, group, 0, NULL, NULL);
    check_cl(status, name);
    clReleaseKernel(kernel); /* OpenCL keeps it until it has run */
}

#define LAUNCH(program, name, group, x, y, z, ...)                                                 \
    launch(device.program, name, group, x, y, z,                                                   \
           sizeof((argument[]){__VA_ARGS__}) / sizeof(argument), (argument[]){__VA_ARGS__})

#endif
