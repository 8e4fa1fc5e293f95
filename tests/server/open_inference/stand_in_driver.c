/* What of libcuda the server calls, on the memory of its own process: a handle holds an address and a size. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef struct { char reserved[64]; } Handle;
static uint64_t opened, opened_size;
int open_handles = 0;

int cuInit(unsigned flags) { return 0; }
int cuGetErrorName(int error, const char **name) { *name = error == 201 ? "CUDA_ERROR_INVALID_CONTEXT" : "CUDA_ERROR_OTHER"; return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return ordinal < 2 ? 0 : 101; }
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = (void *)(uintptr_t)(device + 1); return 0; }
int cuCtxSetCurrent(void *context) { return context ? 0 : 201; }
int cuIpcOpenMemHandle_v2(uint64_t *address, Handle handle, unsigned flags) {
    memcpy(&opened, handle.reserved, 8);
    memcpy(&opened_size, handle.reserved + 8, 8);
    if (!opened || flags != 1) return 1;
    *address = opened;
    open_handles++;
    return 0;
}
int cuIpcCloseMemHandle(uint64_t address) { open_handles--; return address == opened ? 0 : 1; }
int cuMemGetAddressRange_v2(uint64_t *base, size_t *size, uint64_t address) { *base = opened; *size = opened_size; return 0; }
int cuMemcpyDtoH_v2(void *to, uint64_t from, size_t count) { memcpy(to, (void *)(uintptr_t)from, count); return 0; }
int cuMemcpyHtoD_v2(uint64_t to, const void *from, size_t count) { memcpy((void *)(uintptr_t)to, from, count); return 0; }
