// The threads of a threadgroup as fibers: each runs until it meets others, in a simdgroup or at a barrier.
#include "runtime.h"

#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define STACK (256u << 10)
#define PAGE (64u << 10)  // at least the machine's page

enum { READY, IN_SIMD, AT_BARRIER, ENDED };

struct thread {
    void *stack_pointer;
    int state, operation;
    int32_t argument;
    uint64_t bits, result;
    float matrix[6];
    uint32_t positions[POSITIONS];
};

static struct thread threads[MAX_THREADS], *current;
static char *stacks;
static void *scheduler;
static entry_point entry;
static struct buffer *buffers;
static struct fault *faults;
static uint32_t fault_count, fault_room;
static sigjmp_buf crashed;
static char scratch[2][4096];  // what a faulty read sees (zeros), and where a faulty write goes

// Saves the registers that a call must keep, and continues on another stack.
void pg_switch(void **save, void *load);
#if defined(__APPLE__)
#define SYMBOL "_pg_switch"
#else
#define SYMBOL "pg_switch"
#endif
#if defined(__x86_64__)
__asm__(".globl " SYMBOL "\n" SYMBOL ":\n"
        "push %rbp\n push %rbx\n push %r12\n push %r13\n push %r14\n push %r15\n"
        "mov %rsp, (%rdi)\n mov %rsi, %rsp\n"
        "pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbx\n pop %rbp\n ret\n");
enum { FRAME = 8, RETURN = 6 };  // words on a new stack; which of them is the address to return to
#elif defined(__aarch64__)
__asm__(".globl " SYMBOL "\n" SYMBOL ":\n"
        "sub sp, sp, #160\n"
        "stp x19, x20, [sp]\n stp x21, x22, [sp, #16]\n stp x23, x24, [sp, #32]\n stp x25, x26, [sp, #48]\n"
        "stp x27, x28, [sp, #64]\n stp x29, x30, [sp, #80]\n"
        "stp d8, d9, [sp, #96]\n stp d10, d11, [sp, #112]\n stp d12, d13, [sp, #128]\n stp d14, d15, [sp, #144]\n"
        "mov x9, sp\n str x9, [x0]\n mov sp, x1\n"
        "ldp x19, x20, [sp]\n ldp x21, x22, [sp, #16]\n ldp x23, x24, [sp, #32]\n ldp x25, x26, [sp, #48]\n"
        "ldp x27, x28, [sp, #64]\n ldp x29, x30, [sp, #80]\n"
        "ldp d8, d9, [sp, #96]\n ldp d10, d11, [sp, #112]\n ldp d12, d13, [sp, #128]\n ldp d14, d15, [sp, #144]\n"
        "add sp, sp, #160\n ret\n");
enum { FRAME = 20, RETURN = 11 };
#else
#error "no switch between fibers for this processor"
#endif

static void wait_as(int state) {
    struct thread *me = current;
    me->state = state;
    pg_switch(&me->stack_pointer, scheduler);
}

static void run_thread(void) {
    entry(buffers, current->positions);
    wait_as(ENDED);
    abort();
}

static void prepare(struct thread *thread, uint32_t index) {
    char *top = stacks + (uint64_t)(index + 1) * (STACK + PAGE);
    uint64_t *frame = (uint64_t *)top - FRAME;
    memset(frame, 0, FRAME * sizeof *frame);
    frame[RETURN] = (uint64_t)run_thread;
    thread->stack_pointer = frame;
    thread->state = READY;
}

uint64_t pg_simd(int operation, uint64_t bits, int32_t argument) {
    struct thread *me = current;
    me->operation = operation, me->bits = bits, me->argument = argument;
    wait_as(IN_SIMD);
    return me->result;
}

void pg_matrix(const float a[2], const float b[2], float c[2]) {
    struct thread *me = current;
    memcpy(me->matrix, a, 8), memcpy(me->matrix + 2, b, 8), memcpy(me->matrix + 4, c, 8);
    pg_simd(MATRIX, 0, 0);
    memcpy(c, me->matrix + 4, 8);
}

void pg_barrier(void) { wait_as(AT_BARRIER); }

void *pg_fault(uint32_t site, uint32_t kind, int64_t offset) {
    struct fault *fault = faults;
    for (; fault < faults + fault_count; fault++)
        if (fault->site == site && fault->kind == kind) break;
    if (fault == faults + fault_count) {
        if (fault_count == fault_room) return scratch[kind == WRITE];
        fault_count++;
        *fault = (struct fault){.site = site, .kind = kind, .offset = offset};
        memcpy(fault->group, current->positions + GROUP_IN_GRID, sizeof fault->group);
        fault->thread = current->positions[INDEX_IN_GROUP];
    }
    fault->count++;
    return scratch[kind == WRITE];
}

static float as_float(uint64_t bits) { uint32_t word = (uint32_t)bits; float value; memcpy(&value, &word, 4); return value; }
static uint64_t as_bits(float value) { uint32_t word; memcpy(&word, &value, 4); return word; }

// Element (row, column) and (row, column + 1) of an 8 x 8 matrix belong to this lane.
static int row_of(int lane) { return ((lane >> 2) & 4) + ((lane >> 1) & 3); }
static int column_of(int lane) { return ((lane >> 3) & 1) * 4 + (lane & 1) * 2; }

static void multiply_matrices(struct thread *lanes) {
    float a[8][8], b[8][8];
    for (int lane = 0; lane < LANES; lane++) {
        memcpy(&a[row_of(lane)][column_of(lane)], lanes[lane].matrix, 8);
        memcpy(&b[row_of(lane)][column_of(lane)], lanes[lane].matrix + 2, 8);
    }
    for (int lane = 0; lane < LANES; lane++)
        for (int j = 0; j < 2; j++)
            for (int k = 0; k < 8; k++)
                lanes[lane].matrix[4 + j] += a[row_of(lane)][k] * b[k][column_of(lane) + j];
}

// The lanes that wait for the same operation do it. `size` lanes exist; those that are elsewhere take no part.
static int meet(struct thread *lanes, int size) {
    int taking[LANES], count = 0, operation = 0;
    for (int lane = 0; lane < size; lane++) {
        if (lanes[lane].state != IN_SIMD || (operation && lanes[lane].operation != operation)) continue;
        operation = lanes[lane].operation;
        taking[count++] = lane;
    }
    if (!count) return 0;
    if (operation == MATRIX) multiply_matrices(lanes);
    struct thread *first = lanes + taking[0];
    float sum = 0, most = as_float(first->bits), least = most, product = 1, quads[LANES / 4] = {0};
    int32_t whole = 0, top = (int32_t)first->bits, bottom = top;
    uint32_t utop = (uint32_t)top, ubottom = utop;
    for (int i = 0; i < count; i++) {
        uint64_t bits = lanes[taking[i]].bits;
        float value = as_float(bits);
        int32_t number = (int32_t)bits;
        sum += value, product *= value, quads[taking[i] / 4] += value;
        most = value > most ? value : most, least = value < least ? value : least;
        top = number > top ? number : top, bottom = number < bottom ? number : bottom;
        utop = (uint32_t)number > utop ? (uint32_t)number : utop;
        ubottom = (uint32_t)number < ubottom ? (uint32_t)number : ubottom;
        if (operation == EXCLUSIVE_SUM_I32) lanes[taking[i]].result = (uint32_t)whole;
        whole = (int32_t)((uint32_t)whole + (uint32_t)number);
        if (operation == PREFIX_SUM_I32) lanes[taking[i]].result = (uint32_t)whole;
    }
    for (int i = 0; i < count; i++) {
        struct thread *lane = lanes + taking[i];
        int other = taking[i];
        lane->state = READY;
        switch (operation) {
            case SUM_F32: lane->result = as_bits(sum); break;
            case MAX_F32: lane->result = as_bits(most); break;
            case MIN_F32: lane->result = as_bits(least); break;
            case PRODUCT_F32: lane->result = as_bits(product); break;
            case QUAD_SUM_F32: lane->result = as_bits(quads[other / 4]); break;
            case SUM_I32: lane->result = (uint32_t)whole; break;
            case MAX_I32: lane->result = (uint32_t)top; break;
            case MIN_I32: lane->result = (uint32_t)bottom; break;
            case MAX_U32: lane->result = utop; break;
            case MIN_U32: lane->result = ubottom; break;
            case SHUFFLE: other = lane->argument; break;
            case SHUFFLE_DOWN: other += lane->argument; break;
            case SHUFFLE_UP: other -= lane->argument; break;
            case SHUFFLE_XOR: other ^= lane->argument; break;
        }
        if (operation >= SHUFFLE && operation <= SHUFFLE_XOR)  // a lane beyond the simdgroup: undefined, so its own
            lane->result = other >= 0 && other < size ? lanes[other].bits : lane->bits;
    }
    return 1;
}

static void run_group(uint32_t size) {
    for (;;) {
        for (uint32_t i = 0; i < size; i++) {
            if (threads[i].state != READY) continue;
            current = threads + i;
            pg_switch(&scheduler, current->stack_pointer);
        }
        int met = 0, released = 0;
        for (uint32_t first = 0; first < size; first += LANES)
            met |= meet(threads + first, (int)(size - first < LANES ? size - first : LANES));
        if (met) continue;
        for (uint32_t i = 0; i < size; i++)
            if (threads[i].state == AT_BARRIER) threads[i].state = READY, released = 1;
        if (!released) return;
    }
}

static void on_crash(int signal, siginfo_t *info, void *context) {
    (void)signal, (void)context;
    pg_fault(UINT32_MAX, CRASH, (int64_t)info->si_addr);
    siglongjmp(crashed, 1);
}

static void place(struct thread *thread, uint32_t index, const uint32_t group[3], const uint32_t grid[3],
                  const uint32_t size[3]) {
    uint32_t *p = thread->positions, count = size[0] * size[1] * size[2];
    uint32_t local[3] = {index % size[0], index / size[0] % size[1], index / (size[0] * size[1])};
    int inside = 1;
    for (int axis = 0; axis < 3; axis++) {
        p[POSITION_IN_GRID + axis] = group[axis] * size[axis] + local[axis];
        p[GROUP_IN_GRID + axis] = group[axis];
        p[POSITION_IN_GROUP + axis] = local[axis];
        p[THREADS_IN_GRID + axis] = grid[axis];
        p[GROUPS_IN_GRID + axis] = (grid[axis] + size[axis] - 1) / size[axis];
        p[THREADS_IN_GROUP + axis] = size[axis];
        inside &= p[POSITION_IN_GRID + axis] < grid[axis];
    }
    p[LANE] = index % LANES, p[SIMDGROUP] = index / LANES, p[LANES_IN_SIMDGROUP] = LANES;
    p[SIMDGROUPS_IN_GROUP] = (count + LANES - 1) / LANES, p[INDEX_IN_GROUP] = index;
    prepare(thread, index);
    if (!inside) thread->state = ENDED;
}

// Runs some threadgroups, one after the other. grid: in threads. chosen: three coordinates each. Returns the number
// of faults, each a place in the kernel; -1 if there is no memory.
int pg_run(entry_point function, struct buffer *given, const uint32_t grid[3], const uint32_t size[3],
           const uint32_t *chosen, uint32_t groups, const struct shared *shared, uint32_t shares, struct fault *found,
           uint32_t room) {
    static const int signals[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP};
    enum { SIGNALS = sizeof signals / sizeof *signals };
    static char signal_stack[256 << 10];
    struct sigaction before[SIGNALS], now = {.sa_sigaction = on_crash, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    stack_t own = {.ss_sp = signal_stack, .ss_size = sizeof signal_stack}, others;
    if (!stacks) {
        stacks = mmap(0, (uint64_t)MAX_THREADS * (STACK + PAGE), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1, 0);
        if (stacks == MAP_FAILED) return stacks = 0, -1;
        for (int i = 0; i < MAX_THREADS; i++) mprotect(stacks + (uint64_t)i * (STACK + PAGE), PAGE, PROT_NONE);
    }
    entry = function, buffers = given, faults = found, fault_room = room, fault_count = 0;
    memset(scratch, 0, sizeof scratch);
    sigaltstack(&own, &others);
    for (int i = 0; i < SIGNALS; i++) sigaction(signals[i], &now, before + i);
    if (!sigsetjmp(crashed, 1))
        for (uint32_t g = 0; g < groups; g++) {
            for (uint32_t i = 0; i < shares; i++) memset(shared[i].data, 0xff, shared[i].size);
            uint32_t count = size[0] * size[1] * size[2];
            for (uint32_t i = 0; i < count; i++) place(threads + i, i, chosen + 3 * g, grid, size);
            run_group(count);
        }
    for (int i = 0; i < SIGNALS; i++) sigaction(signals[i], before + i, 0);
    sigaltstack(&others, 0);
    return (int)fault_count;
}
