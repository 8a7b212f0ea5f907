/* Vectors of doubles, and elementary functions of them.
 *
 * gcc and clang compile GCC's vector extensions to the vector instructions of the processor. Values are computed in
 * double precision whatever the type of the tensors: this costs little compared to memory traffic, and keeps the
 * log-determinant of a steep spline exact to the last digits of float32.
 */
#include <stdint.h>

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16
#endif

typedef double vd __attribute__((vector_size(VECTOR_BYTES)));
typedef int64_t vl __attribute__((vector_size(VECTOR_BYTES)));
typedef double vd_memory __attribute__((vector_size(VECTOR_BYTES), aligned(8), may_alias));
typedef float vf_memory __attribute__((vector_size(VECTOR_BYTES / 2), aligned(4), may_alias));
typedef float vf_half __attribute__((vector_size(VECTOR_BYTES / 2)));

enum { VD = VECTOR_BYTES / 8 };

#define INLINE static inline __attribute__((always_inline))
#define SEPARATE static __attribute__((noinline)) /* large and called often: inlining would take long to compile */
#define UNROLL _Pragma("GCC unroll 16")

INLINE vd all(double value) { return value - (vd){0}; }
INLINE vd choose(vl mask, vd yes, vd no) { return (vd)((mask & (vl)yes) | (~mask & (vl)no)); }
INLINE vd load_f64(const double *p) { return *(const vd_memory *)p; }
INLINE vd load_f32(const float *p) { return __builtin_convertvector(*(const vf_memory *)p, vd); }
INLINE void store_f64(double *p, vd value) { *(vd_memory *)p = value; }
INLINE void store_f32(float *p, vd value) { *(vf_memory *)p = __builtin_convertvector(value, vf_half); }

/* The comparisons are written so that NaN is kept. */
INLINE vd at_least(vd x, double least) { return choose(x < least, all(least), x); }
INLINE vd at_most(vd x, double most) { return choose(x > most, all(most), x); }
INLINE vd larger(vd a, vd b) { return choose(a < b, b, a); }
INLINE vd absolute(vd x) { return (vd)((vl)x & INT64_MAX); }

/* e^x: reduction by multiples of ln 2, Taylor series to degree 13 on |r| <= ln(2)/2 (error below 1e-17). */
INLINE vd exponential(vd x) {
    /* Adding it to a double below 2^51 leaves the nearest integer, plus the bias of an exponent, in the low bits. */
    const double magic = 0x1.8p52 + 1023.0;
    x = at_most(at_least(x, -708.0), 709.0);
    vd shifted = x * 0x1.71547652b82fep0 + magic;
    vd n = shifted - magic;
    vd r = x - n * 0x1.62e42fefa39efp-1 - n * 0x1.abc9e3b39803fp-56;
    vd p = all(1.0 / 6227020800.0);
    p = p * r + 1.0 / 479001600.0;
    p = p * r + 1.0 / 39916800.0;
    p = p * r + 1.0 / 3628800.0;
    p = p * r + 1.0 / 362880.0;
    p = p * r + 1.0 / 40320.0;
    p = p * r + 1.0 / 5040.0;
    p = p * r + 1.0 / 720.0;
    p = p * r + 1.0 / 120.0;
    p = p * r + 1.0 / 24.0;
    p = p * r + 1.0 / 6.0;
    p = p * r + 0.5;
    p = p * r + 1.0;
    p = p * r + 1.0;
    return p * (vd)((vl)shifted << 52); /* times 2^n; a product, so that NaN is kept */
}

/* log x for normal positive x; NaN for infinity and NaN. x = 2^n m with m in [sqrt(1/2), sqrt(2)), and
 * log m = 2 atanh((m - 1) / (m + 1)). */
INLINE vd logarithm(vd x) {
    const int64_t root_half = 0x3fe6a09e667f3bcdLL;
    vl n = ((vl)x - root_half) >> 52;
    vd m = (vd)((vl)x - (n << 52));
    vd s = (m - 1.0) / (m + 1.0);
    vd q = s * s;
    vd p = all(2.0 / 21.0);
    p = p * q + 2.0 / 19.0;
    p = p * q + 2.0 / 17.0;
    p = p * q + 2.0 / 15.0;
    p = p * q + 2.0 / 13.0;
    p = p * q + 2.0 / 11.0;
    p = p * q + 2.0 / 9.0;
    p = p * q + 2.0 / 7.0;
    p = p * q + 2.0 / 5.0;
    p = p * q + 2.0 / 3.0;
    p = p * q * s + 2.0 * s;
    vd exponent = __builtin_convertvector(n, vd);
    return exponent * 0x1.62e42fefa39efp-1 + p + exponent * 0x1.abc9e3b39803fp-56 + (x - x);
}

INLINE vd root(vd x) {
    vd y = x;
    for (int i = 0; i < VD; i++) y[i] = __builtin_sqrt(x[i]);
    return y;
}

/* log(1 + e^x) and its derivative, the logistic function, from one exponential. */
INLINE vd softplus(vd x, vd *derivative) {
    vd e = exponential(-absolute(x));
    vd reciprocal = 1.0 / (1.0 + e);
    *derivative = choose(x < 0.0, e * reciprocal, reciprocal);
    return at_least(x, 0.0) + logarithm(1.0 + e);
}

#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE __builtin_shufflevector
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (NAME(vi)){__VA_ARGS__})
#endif

/* Interleave the entries of two vectors: of their first halves, and of their second halves. */
#define FIRST_OF_2(a, b) SHUFFLE(a, b, 0, 2)
#define SECOND_OF_2(a, b) SHUFFLE(a, b, 1, 3)
#define FIRST_OF_4(a, b) SHUFFLE(a, b, 0, 4, 1, 5)
#define SECOND_OF_4(a, b) SHUFFLE(a, b, 2, 6, 3, 7)
#define FIRST_OF_8(a, b) SHUFFLE(a, b, 0, 8, 1, 9, 2, 10, 3, 11)
#define SECOND_OF_8(a, b) SHUFFLE(a, b, 4, 12, 5, 13, 6, 14, 7, 15)
#define FIRST_OF_16(a, b) SHUFFLE(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23)
#define SECOND_OF_16(a, b) SHUFFLE(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
