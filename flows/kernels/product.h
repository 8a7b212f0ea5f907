/* Matrix products on one tile, and transposition between tensors and tiles.
 *
 * Included once for each type of tensor. A tile has one row per feature, hidden unit or parameter, of TILE points side
 * by side, so that a product reads and writes whole vectors and its accumulators stay in registers.
 */

typedef REAL NAME(vr) __attribute__((vector_size(VECTOR_BYTES)));
typedef INTEGER NAME(vi) __attribute__((vector_size(VECTOR_BYTES)));
typedef REAL NAME(vr_memory) __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(REAL)), may_alias));

enum { NAME(LANES) = VECTOR_BYTES / sizeof(REAL) };

/* A matrix in memory: entry (r, k) is start[r * down + k * right]. Row r is zero outside the columns from[r] to to[r],
 * both ascending with r (NULL: from 0, to columns); the values stored there are not read. */
typedef struct {
    const REAL *start;
    long down, right, columns;
    const long *from, *to;
} NAME(matrix);

/* A block of rows x (vectors x LANES): out (+)= w[:, from:to] a[from:to, :]. Sizes are constants where it is
 * inlined. */
INLINE void NAME(block)(const int rows, const int vectors, long from, long to, const REAL *w, long down, long right,
                        const REAL *a, long lda, REAL *out, long ldo, int accumulate) {
    NAME(vr) sum[rows][vectors];
    UNROLL for (int r = 0; r < rows; r++) {
        UNROLL for (int c = 0; c < vectors; c++) {
            if (accumulate) sum[r][c] = *(const NAME(vr_memory) *)(out + r * ldo + c * NAME(LANES));
            else sum[r][c] = (NAME(vr)){0};
        }
    }
    for (long k = from; k < to; k++) {
        UNROLL for (int r = 0; r < rows; r++) {
            UNROLL for (int c = 0; c < vectors; c++)
                sum[r][c] += w[r * down + k * right] * *(const NAME(vr_memory) *)(a + k * lda + c * NAME(LANES));
        }
    }
    UNROLL for (int r = 0; r < rows; r++) {
        UNROLL for (int c = 0; c < vectors; c++) *(NAME(vr_memory) *)(out + r * ldo + c * NAME(LANES)) = sum[r][c];
    }
}

/* count rows of out (+)= w a, from row r on: columns that all of these rows read in one block, the others row by
 * row. */
INLINE void NAME(group)(const int count, const int vectors, const NAME(matrix) * w, long r, const REAL *a, long lda,
                        REAL *out, long ldo, int accumulate) {
    const REAL *start = w->start + r * w->down;
    REAL *o = out + r * ldo;
    const long from = w->from ? w->from[r + count - 1] : 0;
    const long to = w->to ? w->to[r] : w->columns;
    NAME(block)(count, vectors, from, to, start, w->down, w->right, a, lda, o, ldo, accumulate);
    for (int i = 0; i < count; i++) {
        const REAL *row = start + i * w->down;
        if (w->from && w->from[r + i] < from)
            NAME(block)(1, vectors, w->from[r + i], from, row, 0, w->right, a, lda, o + i * ldo, ldo, 1);
        if (w->to && w->to[r + i] > to)
            NAME(block)(1, vectors, to, w->to[r + i], row, 0, w->right, a, lda, o + i * ldo, ldo, 1);
    }
}

/* All rows of out (+)= w a, one to four vectors wide. */
#define PRODUCT(name, vectors)                                                                                      \
    static void NAME(name)(long rows, const NAME(matrix) * w, const REAL *a, long lda, REAL *out, long ldo,         \
                           int accumulate) {                                                                        \
        long r = 0;                                                                                                 \
        for (; r + ROW_BLOCK <= rows; r += ROW_BLOCK)                                                               \
            NAME(group)(ROW_BLOCK, vectors, w, r, a, lda, out, ldo, accumulate);                                    \
        for (; r + 2 <= rows; r += 2) NAME(group)(2, vectors, w, r, a, lda, out, ldo, accumulate);                  \
        for (; r < rows; r++) NAME(group)(1, vectors, w, r, a, lda, out, ldo, accumulate);                          \
    }
PRODUCT(product_1, 1)
PRODUCT(product_2, 2)
PRODUCT(product_3, 3)
PRODUCT(product_4, 4)
#undef PRODUCT

/* out (+)= w a for one tile: out is (rows, TILE). */
static void NAME(product)(long rows, const NAME(matrix) * w, const REAL *a, REAL *out, int accumulate) {
    NAME(product_4)(rows, w, a, TILE, out, TILE, accumulate);
}

/* The same for count rows from start on, which all read the columns first to last. */
static void NAME(product_of)(const NAME(matrix) * w, long start, long count, long first, long last, const REAL *a,
                             REAL *out, int accumulate) {
    const NAME(matrix) part = {w->start + start * w->down + first * w->right, w->down, w->right, last - first, NULL, NULL};
    NAME(product)(count, &part, a + first * TILE, out, accumulate);
}

/* gw (rows, columns) (+)= g x^T, summed over the points of a tile; transposed is x^T, with rows of length ldt that are
 * zero beyond columns. */
static void NAME(outer)(long rows, long columns, const long *to, const REAL *g, const REAL *transposed, long ldt,
                        REAL *gw, int accumulate) {
    /* The outer loop runs over columns, so that a block of transposed stays in the L1 cache. Rows that are masked in
     * the whole block are skipped. */
    for (long c = 0; c < columns; c += 4 * NAME(LANES)) {
        long start = 0;
        if (to)
            while (start < rows && to[start] <= c) start++;
        const NAME(matrix) m = {g + start * TILE, TILE, 1, TILE, NULL, NULL};
        REAL *o = gw + start * ldt + c;
        switch ((columns - c + NAME(LANES) - 1) / NAME(LANES)) {
            case 1: NAME(product_1)(rows - start, &m, transposed + c, ldt, o, ldt, accumulate); break;
            case 2: NAME(product_2)(rows - start, &m, transposed + c, ldt, o, ldt, accumulate); break;
            case 3: NAME(product_3)(rows - start, &m, transposed + c, ldt, o, ldt, accumulate); break;
            default: NAME(product_4)(rows - start, &m, transposed + c, ldt, o, ldt, accumulate);
        }
    }
}

INLINE long NAME(padded)(long columns) { return (columns + NAME(LANES) - 1) / NAME(LANES) * NAME(LANES); }

/* Copy columns of points (count, stride) to a tile (columns, TILE): the first ones, or those that which lists. The rest
 * of an incomplete tile is zero. */
static void NAME(to_tile)(const REAL *points, long count, long columns, long stride, const int64_t *which, REAL *tile) {
    for (long c = 0; c < columns; c++) {
        const REAL *from = points + (which ? which[c] : c);
        for (long i = 0; i < count; i++) tile[c * TILE + i] = from[i * stride];
        for (long i = count; i < TILE; i++) tile[c * TILE + i] = 0;
    }
}

static void NAME(from_tile)(const REAL *tile, long count, long columns, long stride, const int64_t *which, REAL *points) {
    for (long c = 0; c < columns; c++) {
        REAL *to = points + (which ? which[c] : c);
        for (long i = 0; i < count; i++) to[i * stride] = tile[c * TILE + i];
    }
}

/* Transpose a square block of LANES vectors: each of log2(LANES) rounds interleaves the first half of the rows with the
 * second half, a perfect shuffle of the block's entries. */
INLINE void NAME(transpose_block)(const REAL *from, long ld_from, REAL *to, long ld_to) {
    enum { N = NAME(LANES) };
    NAME(vr) a[N], b[N];
#define INTERLEAVE(x, y) y[2 * r] = FIRST_HALVES(x[r], x[r + N / 2]), y[2 * r + 1] = SECOND_HALVES(x[r], x[r + N / 2]);
    UNROLL for (int r = 0; r < N; r++) a[r] = *(const NAME(vr_memory) *)(from + r * ld_from);
    UNROLL for (int round = 1; round < N; round *= 4) {
        UNROLL for (int r = 0; r < N / 2; r++) INTERLEAVE(a, b)
        if (2 * round == N) {
            UNROLL for (int r = 0; r < N; r++) a[r] = b[r];
            break;
        }
        UNROLL for (int r = 0; r < N / 2; r++) INTERLEAVE(b, a)
    }
#undef INTERLEAVE
    UNROLL for (int r = 0; r < N; r++) *(NAME(vr_memory) *)(to + r * ld_to) = a[r];
}

/* Transpose a tile (rows, TILE) to (TILE, padded(rows)), with zeros in the padding. */
static void NAME(transpose_tile)(const REAL *restrict tile, long rows, REAL *restrict out) {
    const long ld = NAME(padded)(rows), whole = rows / NAME(LANES) * NAME(LANES);
    for (long start = 0; start < whole; start += NAME(LANES))
        for (long i = 0; i < TILE; i += NAME(LANES))
            NAME(transpose_block)(tile + start * TILE + i, TILE, out + i * ld + start, ld);
    for (long i = 0; i < TILE && whole < ld; i++)
        for (long r = whole; r < ld; r++) out[i * ld + r] = r < rows ? tile[r * TILE + i] : 0;
}

static void NAME(sum_of_rows)(const REAL *tile, long rows, REAL *sums, int accumulate) {
    for (long r = 0; r < rows; r++) {
        NAME(vr) total = {0};
        for (long i = 0; i < TILE; i += NAME(LANES)) total += *(const NAME(vr_memory) *)(tile + r * TILE + i);
        REAL sum = 0;
        for (int i = 0; i < NAME(LANES); i++) sum += total[i];
        sums[r] = accumulate ? sums[r] + sum : sum;
    }
}

/* sums[r] (+)= sum over the tile of a_r b_r */
static void NAME(sum_of_products)(const REAL *a, const REAL *b, long rows, REAL *sums, int accumulate) {
    for (long r = 0; r < rows; r++) {
        NAME(vr) total = {0};
        for (long i = 0; i < TILE; i += NAME(LANES))
            total += *(const NAME(vr_memory) *)(a + r * TILE + i) * *(const NAME(vr_memory) *)(b + r * TILE + i);
        REAL sum = 0;
        for (int i = 0; i < NAME(LANES); i++) sum += total[i];
        sums[r] = accumulate ? sums[r] + sum : sum;
    }
}

/* The loops below have no branches, because the compiler would not vectorize them otherwise. */

static void NAME(add_bias)(REAL *tile, long rows, const REAL *bias, const REAL *term) {
    for (long r = 0; r < rows; r++) {
        REAL *restrict t = tile + r * TILE;
        const REAL b = bias[r];
        for (long i = 0; i < TILE; i++) t[i] += b;
        if (!term) continue;
        const REAL *restrict more = term + r * TILE;
        for (long i = 0; i < TILE; i++) t[i] += more[i];
    }
}

static void NAME(scale)(REAL *restrict tile, long n, const REAL *restrict factors) {
    for (long i = 0; i < n; i++) tile[i] *= factors[i];
}

/* ReLU that keeps NaN, so that a bad point remains visible. */
static void NAME(rectify)(const REAL *restrict tile, long n, REAL *restrict active) {
    for (long i = 0; i < n; i++) active[i] = tile[i] < 0 ? 0 : tile[i];
}

/* Backward pass of rectify, in place. */
static void NAME(rectify_backward)(REAL *restrict gradient, long n, const REAL *restrict active) {
    for (long i = 0; i < n; i++) gradient[i] = active[i] > 0 ? gradient[i] : 0;
}

static void NAME(add)(REAL *restrict sum, long n, const REAL *restrict more) {
    for (long i = 0; i < n; i++) sum[i] += more[i];
}
