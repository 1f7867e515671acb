// What the threads of an emulated Metal grid share: who is where, how simdgroups meet, and what went wrong.
#ifndef PG_METAL_RUNTIME_H
#define PG_METAL_RUNTIME_H
#include <stdint.h>

enum { LANES = 32, MAX_THREADS = 1024 };

// Where a thread is, in the order of tools/metal/native.py POSITIONS.
enum {
    POSITION_IN_GRID = 0, GROUP_IN_GRID = 3, POSITION_IN_GROUP = 6, THREADS_IN_GRID = 9, GROUPS_IN_GRID = 12,
    THREADS_IN_GROUP = 15, LANE = 18, SIMDGROUP = 19, LANES_IN_SIMDGROUP = 20, SIMDGROUPS_IN_GROUP = 21,
    INDEX_IN_GROUP = 22, POSITIONS = 23
};

// A buffer as a kernel sees it: it points somewhere into memory [low, high).
struct buffer { char *data, *low, *high; };

// Memory of a threadgroup, spoiled before each threadgroup starts: Metal promises nothing about its contents.
struct shared { char *data; uint64_t size; };

enum { READ = 0, WRITE = 1, CRASH = 2 };

// One place in a kernel that left its memory, with the first thread that did.
struct fault {
    uint32_t site;      // the access's number in the translated kernel
    uint32_t kind;      // READ, WRITE or CRASH
    int64_t offset;     // of the first byte, from the object's start; for a crash the address
    uint32_t group[3];  // the threadgroup
    uint32_t thread;    // its index in the threadgroup
    uint64_t count;     // how often the place did so
};

typedef void (*entry_point)(struct buffer *buffers, uint32_t *positions);

#ifdef __cplusplus
extern "C" {
#endif
// What the lanes of a simdgroup do together. Each lane gives `bits` and gets its own result.
enum {
    SUM_F32 = 1, MAX_F32, MIN_F32, PRODUCT_F32, SUM_I32, MAX_I32, MIN_I32, MAX_U32, MIN_U32, PREFIX_SUM_I32,
    EXCLUSIVE_SUM_I32, SHUFFLE, SHUFFLE_DOWN, SHUFFLE_UP, SHUFFLE_XOR, QUAD_SUM_F32, MEET, MATRIX
};
uint64_t pg_simd(int operation, uint64_t bits, int32_t argument);
void pg_matrix(const float a[2], const float b[2], float c[2]);  // c += a @ b, 8 x 8 matrices over 32 lanes
void pg_barrier(void);
void *pg_fault(uint32_t site, uint32_t kind, int64_t offset);    // notes it; returns memory to use instead
#ifdef __cplusplus
}
#endif
#endif
