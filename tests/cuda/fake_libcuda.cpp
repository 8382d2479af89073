// A stand-in for the NVIDIA driver's library, with memory of the host: it lets the calls that the
// driver module makes run where there is no GPU, and notes launches instead of running them.
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <string>
#include <vector>

using u64 = unsigned long long;
enum { OK = 0, INVALID = 1, NO_MEMORY = 2, NO_DEVICE = 100, NOT_FOUND = 500, ILLEGAL = 700 };

namespace {
constexpr u64 TOTAL = 1 << 20;
u64 used = 0;
int failing = OK;  // what synchronising says
thread_local std::vector<void*> contexts;
std::vector<std::pair<char*, u64>> blocks;
struct Launch {
    std::string name;
    unsigned grid[3], block[3], shared;
    void* stream;
    u64 arguments[3];
};
std::vector<Launch> launches;
int highest_shared = 0, destroyed = 0;
int context_word, graph_word;
double now() {
    auto since = std::chrono::steady_clock::now().time_since_epoch();
    return std::chrono::duration<double>(since).count();
}
int launch(void* f, const unsigned* g, const unsigned* b, unsigned s, void* stream, void** values) {
    if (contexts.empty()) return 201;
    Launch l{static_cast<char*>(f), {g[0], g[1], g[2]}, {b[0], b[1], b[2]}, s, stream, {0, 0, 0}};
    const char* count = getenv("FAKE_ARGUMENTS");
    for (int i = 0; i < (count ? atoi(count) : 3); ++i) std::memcpy(&l.arguments[i], values[i], 8);
    launches.push_back(l);
    return OK;
}
}  // namespace

extern "C" {
int cuGetProcAddress_v2(const char* name, void** f, int, u64, int* status) {
    *f = nullptr;
    for (const char* version : {"_v4", "_v3", "_v2", ""})
        if (!*f) *f = dlsym(RTLD_DEFAULT, (std::string("fake_") + name + version).c_str());
    if (!*f) *f = dlsym(RTLD_DEFAULT, (std::string("fake_") + name).c_str());
    if (status) *status = *f ? 0 : 1;
    return *f ? OK : NOT_FOUND;
}
int cuGetProcAddress(const char* name, void** f, int version, u64 flags) {
    return cuGetProcAddress_v2(name, f, version, flags, nullptr);
}
int fake_cuGetProcAddress(const char* name, void** f, int version, u64 flags, int* status) {
    return cuGetProcAddress_v2(name, f, version, flags, status);
}
int fake_cuInit(unsigned) { return getenv("FAKE_NO_GPU") ? NO_DEVICE : OK; }
int fake_cuDriverGetVersion(int* v) { *v = getenv("FAKE_OLD") ? 12040 : 13000; return OK; }
int fake_cuGetErrorName(int e, const char** s) {
    *s = e == ILLEGAL ? "CUDA_ERROR_ILLEGAL_ADDRESS" : "CUDA_ERROR_OTHER";
    return OK;
}
int fake_cuGetErrorString(int, const char** s) { *s = "what the driver says"; return OK; }
int fake_cuDeviceGetCount(int* n) { *n = 2; return OK; }
int fake_cuDeviceGet(int* d, int ordinal) { *d = ordinal; return OK; }
int fake_cuDeviceGetName(char* s, int n, int) { strncpy(s, "Fake GPU", n); return OK; }
int fake_cuDeviceTotalMem(size_t* n, int) { *n = TOTAL; return OK; }
int fake_cuDeviceGetAttribute(int* v, int attribute, int) {
    *v = attribute == 16 ? 132 : attribute == 97 ? 232448 : attribute == 38 ? 50 << 20
       : attribute == 13 ? 1980000 : attribute == 75 ? 9 : attribute == 76 ? 0 : 1;
    return OK;
}
int fake_cuDevicePrimaryCtxRetain(void** c, int) { *c = &context_word; return OK; }
int fake_cuDevicePrimaryCtxRelease(int) { return OK; }
int fake_cuCtxGetCurrent(void** c) { *c = contexts.empty() ? nullptr : contexts.back(); return OK; }
int fake_cuCtxSetCurrent(void* c) { contexts = {c}; return OK; }
int fake_cuCtxPushCurrent(void* c) { contexts.push_back(c); return OK; }
int fake_cuCtxPopCurrent(void** c) {
    if (contexts.empty()) return 201;
    *c = contexts.back();
    contexts.pop_back();
    return OK;
}
int fake_cuCtxGetDevice(int* d) { *d = 0; return contexts.empty() ? 201 : OK; }
int fake_cuMemGetInfo(size_t* f, size_t* t) { *f = TOTAL - used; *t = TOTAL; return OK; }
int fake_cuMemAlloc(u64* p, size_t n) {
    if (contexts.empty()) return 201;
    if (n > TOTAL - used) return NO_MEMORY;
    char* at = static_cast<char*>(std::aligned_alloc(256, (n + 255) / 256 * 256));
    used += n;
    blocks.push_back({at, n});
    *p = reinterpret_cast<u64>(at);
    return OK;
}
int fake_cuMemFree(u64 p) {
    for (auto& block : blocks)
        if (reinterpret_cast<u64>(block.first) == p) {
            used -= block.second;
            std::free(block.first);
            block.first = nullptr;
            return OK;
        }
    return INVALID;
}
int fake_cuMemAllocHost(void** p, size_t n) { *p = std::malloc(n); return OK; }
int fake_cuMemFreeHost(void* p) { std::free(p); return OK; }
int fake_cuMemcpyHtoDAsync(u64 to, const void* from, size_t n, void*) {
    std::memcpy(reinterpret_cast<void*>(to), from, n);
    return OK;
}
int fake_cuMemcpyDtoHAsync(void* to, u64 from, size_t n, void*) {
    std::memcpy(to, reinterpret_cast<void*>(from), n);
    return OK;
}
int fake_cuMemcpyDtoH(void* to, u64 from, size_t n) {
    std::memcpy(to, reinterpret_cast<void*>(from), n);
    return OK;
}
int fake_cuMemcpyDtoDAsync(u64 to, u64 from, size_t n, void*) {
    std::memcpy(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), n);
    return OK;
}
int fake_cuMemsetD8Async(u64 to, unsigned char v, size_t n, void*) {
    std::memset(reinterpret_cast<void*>(to), v, n);
    return OK;
}
int fake_cuStreamCreate(void** s, unsigned flags) { *s = std::malloc(8 + flags); return OK; }
int fake_cuStreamDestroy(void*) { ++destroyed; return OK; }
int fake_cuStreamSynchronize(void*) { return failing; }
int fake_cuStreamWaitEvent(void*, void*, unsigned) { return OK; }
int fake_cuEventCreate(void** e, unsigned) { *e = new double(0); return OK; }
int fake_cuEventDestroy(void* e) { delete static_cast<double*>(e); ++destroyed; return OK; }
int fake_cuEventRecord(void* e, void*) { *static_cast<double*>(e) = now(); return OK; }
int fake_cuEventSynchronize(void*) { return OK; }
int fake_cuEventElapsedTime(float* ms, void* a, void* b) {
    *ms = float((*static_cast<double*>(b) - *static_cast<double*>(a)) * 1e3);
    return OK;
}
int fake_cuStreamBeginCapture(void*, int mode) { return mode == 2 ? OK : INVALID; }
int fake_cuStreamEndCapture(void*, void** g) { *g = &graph_word; return OK; }
int fake_cuGraphInstantiateWithFlags(void** e, void*, u64) { *e = &graph_word; return OK; }
int fake_cuGraphLaunch(void*, void* stream) {
    Launch l{"graph", {}, {}, 0, stream, {}};
    launches.push_back(l);
    return OK;
}
int fake_cuGraphDestroy(void*) { ++destroyed; return OK; }
int fake_cuGraphExecDestroy(void*) { ++destroyed; return OK; }
int fake_cuLibraryLoadData(void** l, const void* code, void*, void*, unsigned, void*, void*,
                           unsigned) {
    *l = const_cast<void*>(code);
    return std::memcmp(code, "\177ELF", 4) ? 200 : OK;
}
int fake_cuLibraryUnload(void*) { return OK; }
int fake_cuLibraryGetKernel(void** k, void*, const char* name) {
    if (!std::strcmp(name, "absent")) return NOT_FOUND;
    *k = strdup(name);
    return OK;
}
int fake_cuKernelGetAttribute(int* v, int attribute, void*, int) {
    *v = attribute == 4 ? 40 : attribute == 3 ? 8 : 0;
    return OK;
}
int fake_cuKernelSetAttribute(int attribute, int v, void*, int) {
    highest_shared = v;
    return attribute == 8 ? OK : INVALID;
}
int fake_cuOccupancyMaxActiveBlocksPerMultiprocessor(int* n, void*, int block, size_t shared) {
    *n = shared > 49152 && highest_shared < int(shared) ? 0 : 2048 / block;
    return OK;
}
int fake_cuLaunchKernel(void* f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                        unsigned bz, unsigned shared, void* stream, void** values, void**) {
    unsigned g[3] = {gx, gy, gz}, b[3] = {bx, by, bz};
    return launch(f, g, b, shared, stream, values);
}
struct Config { unsigned g[3], b[3], shared; void* stream; void* attributes; unsigned count; };
int fake_cuLaunchKernelEx(const Config* c, void* f, void** values, void**) {
    return launch(f, c->g, c->b, c->shared, c->stream, values);
}

// What tests look at.
void fake_fail(int error) { failing = error; }
u64 fake_used() { return used; }
int fake_destroyed() { return destroyed; }
int fake_launches() { return int(launches.size()); }
const char* fake_launch(int i, unsigned* shape, u64* arguments) {
    const Launch& l = launches[i];
    std::memcpy(shape, l.grid, sizeof l.grid);
    std::memcpy(shape + 3, l.block, sizeof l.block);
    shape[6] = l.shared;
    std::memcpy(arguments, l.arguments, sizeof l.arguments);
    return l.name.c_str();
}
}
