/* A stand-in for a card: a CUDA runtime and driver that allocate main memory, copy for real, and
   launch nothing. PyTorch's CUDA build runs on it as on a card, so what is on the wrong device,
   what an API refuses, what a kernel is compiled to and every call that would wait are seen without
   one. Numbers are not: kernels compute nothing, and fresh memory is zeros.

   build.py adds a function that returns 0 for every other name the libraries export. Which card it
   seems to be: GRPO_STANDIN_CAPABILITY (90). How often what was called: `standin_counts`. */

#define _GNU_SOURCE
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

/* --- what is counted ------------------------------------------------------------------------- */

enum { LAUNCHES, WAITS, TO_DEVICE_PAGEABLE, TO_DEVICE_PINNED, TO_HOST, WITHIN, KINDS };
static long counts[KINDS];

void standin_counts(long* out) { memcpy(out, counts, sizeof counts); }

static void count(int kind) { __atomic_fetch_add(&counts[kind], 1, __ATOMIC_RELAXED); }

/* --- memory ----------------------------------------------------------------------------------- */

#define SPANS 65536
static struct {
    char* start;
    size_t size;
    int host;
} spans[SPANS];
static int used;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static cudaError_t allocate(void** out, size_t size, int host) {
    void* found = NULL;
    if (posix_memalign(&found, 512, size ? size : 512)) {
        return cudaErrorMemoryAllocation;
    }
    memset(found, 0, size);
    pthread_mutex_lock(&lock);
    int place = 0;
    while (place < used && spans[place].start) {
        ++place;
    }
    if (place == used) {
        ++used;
    }
    spans[place].start = found, spans[place].size = size, spans[place].host = host;
    pthread_mutex_unlock(&lock);
    *out = found;
    return cudaSuccess;
}

static cudaError_t release(void* start) {
    pthread_mutex_lock(&lock);
    for (int i = 0; i < used; ++i) {
        if (spans[i].start == start) {
            spans[i].start = NULL;
        }
    }
    pthread_mutex_unlock(&lock);
    free(start);
    return cudaSuccess;
}

/* 0: the card's, 1: pinned, -1: any other memory of the host. */
static int owner(const void* at) {
    int found = -1;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < used; ++i) {
        if (spans[i].start && (char*)at >= spans[i].start &&
            (char*)at < spans[i].start + spans[i].size) {
            found = spans[i].host;
        }
    }
    pthread_mutex_unlock(&lock);
    return found;
}

cudaError_t cudaMalloc(void** out, size_t size) { return allocate(out, size, 0); }
cudaError_t cudaFree(void* at) { return release(at); }
cudaError_t cudaMallocHost(void** out, size_t size) { return allocate(out, size, 1); }
cudaError_t cudaHostAlloc(void** out, size_t size, unsigned flags) {
    return allocate(out, size, 1);
}
cudaError_t cudaFreeHost(void* at) { return release(at); }

cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total) {
    *free_bytes = *total = 140ull << 30;
    return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes* out, const void* at) {
    static const int types[] = {cudaMemoryTypeUnregistered, cudaMemoryTypeDevice,
                                cudaMemoryTypeHost};
    memset(out, 0, sizeof *out);
    out->type = types[owner(at) + 1];
    out->devicePointer = out->hostPointer = (void*)at;
    return cudaSuccess;
}

static cudaError_t copied(void* to, const void* from, size_t size) {
    int source = owner(from), target = owner(to);
    if (!target && !source) {
        count(WITHIN);
    } else if (!target) {
        count(source == 1 ? TO_DEVICE_PINNED : TO_DEVICE_PAGEABLE);
    } else {
        count(TO_HOST);
    }
    memmove(to, from, size);
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t size, enum cudaMemcpyKind kind,
                            cudaStream_t stream) {
    return copied(to, from, size);
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t size, enum cudaMemcpyKind kind) {
    count(WAITS);
    return copied(to, from, size);
}

cudaError_t cudaMemsetAsync(void* to, int value, size_t size, cudaStream_t stream) {
    memset(to, value, size);
    return cudaSuccess;
}

cudaError_t cudaMemset(void* to, int value, size_t size) {
    return cudaMemsetAsync(to, value, size, 0);
}

cudaError_t cudaGetSymbolAddress(void** out, const void* symbol) { return allocate(out, 4096, 0); }

/* --- waiting and launching -------------------------------------------------------------------- */

cudaError_t cudaStreamSynchronize(cudaStream_t stream) { return count(WAITS), cudaSuccess; }
cudaError_t cudaDeviceSynchronize(void) { return count(WAITS), cudaSuccess; }
cudaError_t cudaEventSynchronize(cudaEvent_t event) { return count(WAITS), cudaSuccess; }

cudaError_t cudaEventElapsedTime(float* out, cudaEvent_t from, cudaEvent_t to) {
    *out = 1.0f; /* ms; not a measurement of anything */
    return cudaSuccess;
}

static void* handle(void) { return calloc(1, 64); }

cudaError_t cudaStreamCreateWithPriority(cudaStream_t* out, unsigned flags, int priority) {
    return *out = handle(), cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* out, unsigned flags) {
    return *out = handle(), cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t* out) { return *out = handle(), cudaSuccess; }

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus* out) {
    return *out = cudaStreamCaptureStatusNone, cudaSuccess;
}

cudaError_t cudaLaunchKernel(const void* kernel, dim3 grid, dim3 block, void** arguments,
                             size_t shared, cudaStream_t stream) {
    return count(LAUNCHES), cudaSuccess;
}

/* What kernels compiled by CUDA 13 are launched by, PyTorch's own among them. */
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments,
                               size_t shared, cudaStream_t stream) {
    return count(LAUNCHES), cudaSuccess;
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* how, const void* kernel,
                                void** arguments) {
    return count(LAUNCHES), cudaSuccess;
}

CUresult cuLaunchKernel(CUfunction kernel, unsigned gx, unsigned gy, unsigned gz, unsigned bx,
                        unsigned by, unsigned bz, unsigned shared, CUstream stream,
                        void** arguments, void** extra) {
    return count(LAUNCHES), CUDA_SUCCESS;
}

CUresult cuLaunchKernelEx(const CUlaunchConfig* how, CUfunction kernel, void** arguments,
                          void** extra) {
    return count(LAUNCHES), CUDA_SUCCESS;
}

void** __cudaRegisterFatBinary(void* binary) { return handle(); }

cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
    grid->x = grid->y = grid->z = block->x = block->y = block->z = 1;
    *shared = 0;
    *(void**)stream = NULL;
    return cudaSuccess;
}

/* --- which card ------------------------------------------------------------------------------- */

static int capability(void) {
    const char* said = getenv("GRPO_STANDIN_CAPABILITY");
    return said ? atoi(said) : 90;
}

/* Bytes of shared memory a block may ask for, of compute capabilities 7.5, 8.0, 8.6 and 8.9, 9.0
   and later (CUDA C++ Programming Guide, table of technical specifications). */
static int shared_memory(void) {
    int of = capability();
    return of >= 90 ? 232448 : of == 80 ? 166912 : of == 75 ? 65536 : 101376;
}

static int threads(void) {
    return capability() == 75 ? 1024 : capability() / 10 == 8 && capability() > 80 ? 1536 : 2048;
}

cudaError_t cudaGetDeviceCount(int* out) { return *out = 1, cudaSuccess; }
cudaError_t cudaGetDevice(int* out) { return *out = 0, cudaSuccess; }
cudaError_t cudaDriverGetVersion(int* out) { return *out = CUDART_VERSION, cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int* out) { return *out = CUDART_VERSION, cudaSuccess; }
const char* cudaGetErrorString(cudaError_t error) { return "an error of the stand-in"; }
const char* cudaGetErrorName(cudaError_t error) { return "an error of the stand-in"; }

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp* out, int device) {
    memset(out, 0, sizeof *out);
    strcpy(out->name, "stand-in");
    out->major = capability() / 10;
    out->minor = capability() % 10;
    out->totalGlobalMem = 140ull << 30;
    out->multiProcessorCount = 132;
    out->warpSize = 32;
    out->maxThreadsPerBlock = out->maxThreadsDim[0] = 1024;
    out->maxThreadsPerMultiProcessor = threads();
    out->sharedMemPerBlock = 49152;
    out->sharedMemPerBlockOptin = shared_memory();
    out->sharedMemPerMultiprocessor = shared_memory() + 1024;
    out->regsPerBlock = out->regsPerMultiprocessor = 65536;
    out->l2CacheSize = 60 << 20;
    out->maxGridSize[0] = 2147483647;
    out->maxGridSize[1] = out->maxGridSize[2] = 65535;
    return cudaSuccess;
}

CUresult cuDeviceGetAttribute(int* out, CUdevice_attribute name, CUdevice device) {
    switch (name) {
        case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *out = capability() / 10; break;
        case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *out = capability() % 10; break;
        case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK: *out = 49152; break;
        case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: *out = shared_memory(); break;
        case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR:
            *out = shared_memory() + 1024;
            break;
        case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK: *out = 65536; break;
        case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK: *out = 1024; break;
        case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR: *out = threads(); break;
        case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *out = 132; break;
        case CU_DEVICE_ATTRIBUTE_WARP_SIZE: *out = 32; break;
        /* in kHz */
        case CU_DEVICE_ATTRIBUTE_CLOCK_RATE: *out = 1980000; break;
        case CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE: *out = 3201000; break;
        case CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH: *out = 6144; break;
        default: *out = 1;
    }
    return CUDA_SUCCESS;
}

/* The runtime's numbers of attributes are the driver's. */
cudaError_t cudaDeviceGetAttribute(int* out, enum cudaDeviceAttr name, int device) {
    return cuDeviceGetAttribute(out, (CUdevice_attribute)name, device), cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes* out, const void* kernel) {
    memset(out, 0, sizeof *out);
    out->maxThreadsPerBlock = 1024;
    /* PyTorch's kernels for 8.9 are those compiled for 8.6 */
    out->binaryVersion = out->ptxVersion = capability() == 89 ? 86 : capability();
    return cudaSuccess;
}

CUresult cuFuncGetAttribute(int* out, CUfunction_attribute name, CUfunction kernel) {
    *out = name == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : 0;
    return CUDA_SUCCESS;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* out, const void* kernel, int size,
                                                          size_t shared) {
    return *out = 2, cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* out, const void* kernel,
                                                                   int size, size_t shared,
                                                                   unsigned flags) {
    return *out = 2, cudaSuccess;
}

CUresult cuDriverGetVersion(int* out) { return *out = CUDA_VERSION, CUDA_SUCCESS; }
CUresult cuDeviceGetCount(int* out) { return *out = 1, CUDA_SUCCESS; }
CUresult cuDeviceGet(CUdevice* out, int place) { return *out = place, CUDA_SUCCESS; }
CUresult cuDevicePrimaryCtxGetState(CUdevice device, unsigned* flags, int* active) {
    return *flags = 0, *active = 1, CUDA_SUCCESS;
}
CUresult cuCtxGetCurrent(CUcontext* out) {
    static int context;
    return *out = (CUcontext)&context, CUDA_SUCCESS;
}

/* Driver functions are asked for by name. */
#undef cuGetProcAddress
CUresult cuGetProcAddress_v2(const char* name, void** out, int version, cuuint64_t flags,
                             CUdriverProcAddressQueryResult* result) {
    *out = dlsym(RTLD_DEFAULT, name);
    if (result) {
        *result = CU_GET_PROC_ADDRESS_SUCCESS;
    }
    return CUDA_SUCCESS;
}

CUresult cuGetProcAddress(const char* name, void** out, int version, cuuint64_t flags) {
    return cuGetProcAddress_v2(name, out, version, flags, NULL);
}

cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** out, unsigned version,
                                             unsigned long long flags,
                                             enum cudaDriverEntryPointQueryResult* result) {
    *out = dlsym(RTLD_DEFAULT, name);
    if (result) {
        *result = cudaDriverEntryPointSuccess;
    }
    return cudaSuccess;
}

/* --- cuBLAS, whose products count as one launch each -------------------------------------------
 */

int cublasCreate_v2(void** out) { return *out = handle(), 0; }
int cublasLtCreate(void** out) { return *out = handle(), 0; }

int cublasLtMatmulAlgoGetHeuristic(void* h, void* d, void* a, void* b, void* c, void* o, void* how,
                                   int wanted, void* results, int* found) {
    return *found = 1, 0;
}

#define PRODUCT(name) \
    int name() { return count(LAUNCHES), 0; }
PRODUCT(cublasLtMatmul)
PRODUCT(cublasSgemm_v2)
PRODUCT(cublasDgemm_v2)
PRODUCT(cublasGemmEx)
PRODUCT(cublasSgemmStridedBatched)
PRODUCT(cublasDgemmStridedBatched)
PRODUCT(cublasGemmStridedBatchedEx)
