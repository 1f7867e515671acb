// As much of Metal's language as simple kernels need, in C++: see tools/metal/source.py.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "runtime.h"

#define device
#define constant
#define thread
#define kernel

using uint = uint32_t;
using ushort = uint16_t;
using ulong = uint64_t;
using uchar = uint8_t;

struct uint2 { uint x, y; };
struct uint3 { uint x, y, z; };

struct bfloat16_t {
    uint16_t bits;
    bfloat16_t() = default;
    template <typename Number> bfloat16_t(Number number) {
        float value = float(number);
        uint32_t word;
        std::memcpy(&word, &value, 4);
        bool nan = (word & 0x7fffffff) > 0x7f800000;
        bits = nan ? uint16_t(word >> 16 | 64) : uint16_t((word + 0x7fff + (word >> 16 & 1)) >> 16);
    }
    operator float() const {
        uint32_t word = uint32_t(bits) << 16;
        float value;
        std::memcpy(&value, &word, 4);
        return value;
    }
};
using bfloat = bfloat16_t;

namespace shim {
template <typename Value> uint64_t bits(Value value) {
    uint64_t word = 0;
    std::memcpy(&word, &value, sizeof value);
    return word;
}
template <typename Value> Value from(uint64_t word) {
    Value value;
    std::memcpy(&value, &word, sizeof value);
    return value;
}
template <typename Value> Value simd(int on_float, int on_int, Value value, int argument = 0) {
    if constexpr (std::is_same_v<Value, float>) return from<float>(pg_simd(on_float, bits(value), argument));
    else if constexpr (std::is_integral_v<Value>)
        return Value(from<int32_t>(pg_simd(on_int, bits(int32_t(value)), argument)));
    else return Value(from<float>(pg_simd(on_float, bits(float(value)), argument)));
}
}  // namespace shim

template <typename Value> Value simd_sum(Value value) { return shim::simd(SUM_F32, SUM_I32, value); }
template <typename Value> Value simd_max(Value value) { return shim::simd(MAX_F32, MAX_I32, value); }
template <typename Value> Value simd_min(Value value) { return shim::simd(MIN_F32, MIN_I32, value); }
template <typename Value> Value simd_shuffle(Value value, ushort lane) { return shim::simd(SHUFFLE, SHUFFLE, value, lane); }
template <typename Value> Value simd_shuffle_down(Value value, ushort by) {
    return shim::simd(SHUFFLE_DOWN, SHUFFLE_DOWN, value, by);
}
template <typename Value> Value simd_shuffle_up(Value value, ushort by) {
    return shim::simd(SHUFFLE_UP, SHUFFLE_UP, value, by);
}
template <typename Value> Value simd_shuffle_xor(Value value, ushort mask) {
    return shim::simd(SHUFFLE_XOR, SHUFFLE_XOR, value, mask);
}
template <typename Value> Value simd_broadcast(Value value, ushort lane) { return simd_shuffle(value, lane); }

enum class mem_flags { mem_none, mem_device, mem_threadgroup };
inline void threadgroup_barrier(mem_flags) { pg_barrier(); }
inline void simdgroup_barrier(mem_flags) { pg_simd(MEET, 0, 0); }

namespace metal {
using ::mem_flags;
using ::simd_max;
using ::simd_min;
using ::simd_sum;
inline float rsqrt(float x) { return 1.0f / std::sqrt(x); }
using std::abs;
using std::cos;
using std::exp;
using std::exp2;
using std::fma;
using std::isnan;
using std::log;
using std::log2;
using std::max;
using std::min;
using std::pow;
using std::sin;
using std::sqrt;
using std::tanh;
template <typename Value> Value clamp(Value x, Value low, Value high) { return std::min(std::max(x, low), high); }
namespace precise = ::metal;
namespace fast = ::metal;
}  // namespace metal
using namespace metal;
