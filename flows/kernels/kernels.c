/* Kernels of layers on a CPU, compiled by build.py.
 *
 * Everything is compiled twice, for float and for double tensors; the univariate maps compute in double in both cases.
 * Memory comes from arenas, which belong to a thread and are kept between calls. The functions called from Python
 * return 0, or 1 if there is not enough memory, except adamw.
 */
#include <math.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#define MEMBER omp_get_thread_num()
#define MEMBERS omp_get_num_threads()
#else
#define MEMBER 0
#define MEMBERS 1
#endif

#include "vector.h"

#define MOST_BLOCKS 16
/* As in rational_quadratic.py: smallest width, height and slope; softplus(SLOPE_AT_ZERO) = 1 - LEAST. */
#define LEAST 1e-3
#define SLOPE_AT_ZERO 0.539742417236952

/* Rows per block of a product: with four vectors each, as many as fit into the registers. */
#if defined(__AVX512F__) || defined(__aarch64__)
#define ROW_BLOCK 4
#else
#define ROW_BLOCK 2
#endif

enum { AFFINE, SPLINE, MIXTURE };                 /* maps, as in native.py */
enum { NETWORK, NORMALIZE, LINEAR, PERMUTE };     /* layers, as in native.py */

typedef struct {
    int64_t kind;
    int64_t bins; /* bins of a spline, or components of a mixture */
    double bound; /* bound of the interval, of the log-scale, or smallest scale of a component */
    int64_t learned; /* 1: the outermost slopes of a spline are parameters, and the lines outside have them */
} map;

/* A layer; the same layout as Layer in layers.py. */
typedef struct {
    int64_t kind;
    int64_t inverse;                /* 1: its inverse is what a chain applies forwards */
    int64_t first;                  /* number of its first tensor among those of the chain */
    int64_t inputs, hidden, blocks; /* of the network */
    int64_t values, size;           /* number of mapped features, and of parameters of each map */
    map map;
    const int64_t *identity_features, *transformed_features; /* coupling: features read, features mapped */
    const int64_t *known; /* known[d]: number of hidden units that read only the first d inputs; NULL: no masks */
    const int64_t *order, *back; /* permutation and its inverse */
} layer;

/* The arguments of a kernel; the same layout as Chain in native.py. */
typedef struct {
    int64_t points, features, threads, layers;
    int64_t inverse; /* 1: the layers are inverted, from the last to the first */
    const layer *layer;
    /* Of all layers: weights, biases, context terms and dropout factors as in open_network; shift and log_scale; lower,
     * upper, log_diagonal and bias. */
    void *const *tensors;
    void *const *g_tensors; /* their gradients; NULL: only that of the points */
} chain;

/* Number of groups of tiles: about eight tiles each, and equally many for each thread. */
static long groups_of(long tiles, long threads) { return threads * ((tiles + 8 * threads - 1) / (8 * threads)); }

/* Memory that is taken piece by piece and freed all at once, when the arena is opened again. */
typedef struct spill {
    struct spill *next;
} spill;
typedef struct {
    char *start;
    size_t size, used, wanted;
    spill *spills; /* pieces that did not fit; the arena grows by their size when it is opened again */
    int failed;
} arena;

static _Thread_local arena arenas[2];
static _Thread_local int is_registered;
static pthread_key_t leaving;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void drop_spills(arena *a) {
    while (a->spills) {
        spill *next = a->spills->next;
        free(a->spills);
        a->spills = next;
    }
}

/* Free the arenas of a thread that ends. */
static void free_arenas(void *owned) {
    for (arena *a = owned; a < (arena *)owned + 2; a++) {
        drop_spills(a);
        free(a->start);
        *a = (arena){0};
    }
    is_registered = 0;
}

static int has_key;
static void make_key(void) { has_key = pthread_key_create(&leaving, free_arenas) == 0; }

static arena *open_arena(int which) {
    arena *a = &arenas[which];
    if (!is_registered) {
        pthread_once(&once, make_key);
        if (has_key) pthread_setspecific(leaving, arenas);
        is_registered = 1;
    }
    drop_spills(a);
    if (a->wanted > a->size) {
        free(a->start);
        a->start = aligned_alloc(64, a->wanted);
        a->size = a->start ? a->wanted : 0;
    }
    a->used = a->wanted = 0;
    a->failed = 0;
    return a;
}

static void *take(arena *a, size_t bytes) {
    bytes = (bytes + 63) / 64 * 64;
    a->wanted += bytes;
    if (a->used + bytes <= a->size) {
        void *piece = a->start + a->used;
        a->used += bytes;
        return piece;
    }
    spill *piece = aligned_alloc(64, bytes + 64);
    if (!piece) {
        a->failed = 1;
        return NULL;
    }
    piece->next = a->spills;
    a->spills = piece;
    return (char *)piece + 64;
}

#define REAL float
#define INTEGER int32_t
#define ROOT __builtin_sqrtf
#define MOST 5.304520507955288e17f /* the largest float to the power .46 */
#define NAME(name) name##_f32
#define LOAD load_f32
#define STORE store_f32
#define TILE (4 * VECTOR_BYTES / 4)
#if VECTOR_BYTES == 64
#define FIRST_HALVES FIRST_OF_16
#define SECOND_HALVES SECOND_OF_16
#elif VECTOR_BYTES == 32
#define FIRST_HALVES FIRST_OF_8
#define SECOND_HALVES SECOND_OF_8
#else
#define FIRST_HALVES FIRST_OF_4
#define SECOND_HALVES SECOND_OF_4
#endif
#include "mixture.h"
#include "univariate.h"
#include "product.h"
#include "network.h"
#include "chain.h"
#include "elementwise.h"
#include "optimizer.h"
#undef REAL
#undef INTEGER
#undef ROOT
#undef MOST
#undef NAME
#undef LOAD
#undef STORE
#undef TILE
#undef FIRST_HALVES
#undef SECOND_HALVES

#define REAL double
#define INTEGER int64_t
#define ROOT __builtin_sqrt
#define MOST 6.268579781100485e141
#define NAME(name) name##_f64
#define LOAD load_f64
#define STORE store_f64
#define TILE (4 * VECTOR_BYTES / 8)
#if VECTOR_BYTES == 64
#define FIRST_HALVES FIRST_OF_8
#define SECOND_HALVES SECOND_OF_8
#elif VECTOR_BYTES == 32
#define FIRST_HALVES FIRST_OF_4
#define SECOND_HALVES SECOND_OF_4
#else
#define FIRST_HALVES FIRST_OF_2
#define SECOND_HALVES SECOND_OF_2
#endif
#include "mixture.h"
#include "univariate.h"
#include "product.h"
#include "network.h"
#include "chain.h"
#include "elementwise.h"
#include "optimizer.h"

int64_t points_of_tile(int is_double) { return 4 * VECTOR_BYTES / (is_double ? 8 : 4); }
