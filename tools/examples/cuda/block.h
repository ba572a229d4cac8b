/* block.h: a kernel that runs on a GPU, or as loops on the CPU, from one source.
 *
 * A kernel is a struct whose operator()(block) says what one block of THREADS threads does, as a
 * sequence of phases:
 *
 *     each_thread([&](int thread) { ... });
 *
 * On the GPU every thread runs its own part of the phase and waits for the others at its end
 * (__syncthreads). On the CPU the phase is a loop over the threads. What one phase leaves to the
 * next lives in memory that the block shares (SHARED), or in a register of each thread
 * (per_thread). So the arithmetic of the kernels can be tested where there is no GPU, even without
 * CUDA: g++ compiles this file, too.
 *
 * What a CPU cannot show: two threads that touch one place in the same phase.
 */
#ifndef ET_EXAMPLE_BLOCK_H
#define ET_EXAMPLE_BLOCK_H

#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#ifdef __CUDACC__
#define ANYWHERE __host__ __device__
#else
#define ANYWHERE
#endif

#ifdef __CUDA_ARCH__ /* this pass compiles for the GPU */
#define SHARED __shared__
#else
#define SHARED
#endif

enum { THREADS = 256 };

/* A block's place in its grid. */
struct block {
    size_t x, y, z;
};

template <class Phase> ANYWHERE void each_thread(Phase phase)
{
#ifdef __CUDA_ARCH__
    phase((int)threadIdx.x);
    __syncthreads();
#else
    for (int thread = 0; thread < THREADS; thread++) phase(thread);
#endif
}

/* A variable of which each thread has its own. */
template <class T> class per_thread
{
#ifdef __CUDA_ARCH__
    T own;

  public:
    ANYWHERE T &operator[](int)
    {
        return own;
    }
#else
    T all[THREADS];

  public:
    ANYWHERE T &operator[](int thread)
    {
        return all[thread];
    }
#endif
};

/* Stops the program where CUDA reports an error. */
#ifdef __CUDACC__
inline void succeed(cudaError_t error, const char *what)
{
    if (error == cudaSuccess) return;
    fprintf(stderr, "test_et: %s: %s\n", what, cudaGetErrorString(error));
    exit(2);
}

template <class Kernel> __global__ void run_block(Kernel kernel)
{
    kernel(block{blockIdx.x, blockIdx.y, blockIdx.z});
}
#endif

/* True if there is a GPU that this program can use. */
inline bool have_gpu()
{
#ifdef __CUDACC__
    int devices = 0;
    return cudaGetDeviceCount(&devices) == cudaSuccess && devices > 0;
#else
    return false;
#endif
}

/* Runs a kernel on x * y * z blocks. A grid without blocks is nothing to do. */
template <class Kernel> void launch(bool gpu, size_t x, size_t y, size_t z, const Kernel &kernel)
{
    if (x * y * z == 0) return;
#ifdef __CUDACC__
    if (gpu) {
        run_block<<<dim3((unsigned)x, (unsigned)y, (unsigned)z), THREADS>>>(kernel);
        succeed(cudaGetLastError(), "launch");
        return;
    }
#endif
    (void)gpu;
    for (size_t k = 0; k < z; k++)
        for (size_t j = 0; j < y; j++)
            for (size_t i = 0; i < x; i++) kernel(block{i, j, k});
}

/* `count` values on the GPU or on the CPU, zeroed. */
template <class T> class array
{
  public:
    array(bool gpu_, size_t count_) : gpu(gpu_), count(count_), at(nullptr)
    {
        if (count == 0) return;
#ifdef __CUDACC__
        if (gpu) {
            succeed(cudaMalloc((void **)&at, count * sizeof(T)), "cudaMalloc");
            succeed(cudaMemset(at, 0, count * sizeof(T)), "cudaMemset");
            return;
        }
#endif
        at = new T[count]();
    }
    ~array()
    {
#ifdef __CUDACC__
        if (gpu) {
            cudaFree(at);
            return;
        }
#endif
        delete[] at;
    }
    array(const array &) = delete;
    array &operator=(const array &) = delete;

    /* Brings doubles in, rounded to T. */
    void put(const double *from)
    {
        std::vector<T> rounded(count);
        for (size_t i = 0; i < count; i++) rounded[i] = T(from[i]);
        copy(at, rounded.data(), true);
    }
    std::vector<T> get() const
    {
        std::vector<T> values(count);
        copy(values.data(), at, false);
        return values;
    }
    T *data() const
    {
        return at;
    }
    size_t size() const
    {
        return count;
    }

  private:
    void copy(T *to, const T *from, bool in) const
    {
        if (count == 0) return;
        (void)in;
#ifdef __CUDACC__
        if (gpu) {
            succeed(cudaMemcpy(to, from, count * sizeof(T),
                               in ? cudaMemcpyHostToDevice : cudaMemcpyDeviceToHost),
                    "a kernel, or cudaMemcpy");
            return;
        }
#endif
        memcpy((void *)to, (const void *)from, count * sizeof(T));
    }

    bool gpu;
    size_t count;
    T *at;
};

#endif
