// float to bfloat16, which compiled kernels call where the processor has no instruction for it.
#include <stdint.h>
#include <string.h>

// LLVM passes a bfloat16 in the low bits of a vector register, as it passes a float.
float pg_to_bfloat16(float value) {
    uint32_t word;
    memcpy(&word, &value, 4);
    if ((word & 0x7fffffff) > 0x7f800000) word |= 0x400000;  // a NaN stays one
    else word += 0x7fff + (word >> 16 & 1);                  // to nearest, ties to even
    word >>= 16;
    memcpy(&value, &word, 4);
    return value;
}
