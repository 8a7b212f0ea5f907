/* Matrix products of one tile, and transpositions between tensors and tiles.
 *
 * Included once for each type of tensor. A tile holds TILE points side by side for every row (a feature, a hidden unit
 * or a parameter), so that a product reads and writes whole vectors and its accumulators stay in registers.
 */

typedef REAL NAME(vr) __attribute__((vector_size(VECTOR_BYTES)));
typedef REAL NAME(vr_memory) __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(REAL)), may_alias));

enum { NAME(LANES) = VECTOR_BYTES / sizeof(REAL) };

/* rows x (vectors x LANES) block of out (+)= w[:, from:to] a[from:to, :]. Sizes are constants where it is inlined. */
INLINE void NAME(block)(const int rows, const int vectors, long from, long to, const REAL *w, long ldw, const REAL *a,
                        long lda, REAL *out, long ldo, int accumulate) {
    NAME(vr) sum[rows][vectors];
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < vectors; c++)
            if (accumulate) sum[r][c] = *(const NAME(vr_memory) *)(out + r * ldo + c * NAME(LANES));
            else sum[r][c] = (NAME(vr)){0};
    for (long k = from; k < to; k++)
        for (int r = 0; r < rows; r++)
            for (int c = 0; c < vectors; c++)
                sum[r][c] += w[r * ldw + k] * *(const NAME(vr_memory) *)(a + k * lda + c * NAME(LANES));
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < vectors; c++) *(NAME(vr_memory) *)(out + r * ldo + c * NAME(LANES)) = sum[r][c];
}

/* out (+)= w a for many rows, up to four vectors wide. Row r reads the columns from[r] to to[r] of w, both ascending
 * with r (NULL: from 0, to k); outside of them w is zero. */
static void NAME(rows_of)(const int vectors, long rows, const long *from, const long *to, long k, const REAL *w,
                          long ldw, const REAL *a, long lda, REAL *out, long ldo, int accumulate) {
    long r = 0;
#define ROWS(count)                                                                                                 \
    {                                                                                                               \
        long first = from ? from[r] : 0, last = to ? to[r + count - 1] : k;                                         \
        const REAL *wr = w + r * ldw;                                                                               \
        REAL *o = out + r * ldo;                                                                                    \
        switch (vectors) {                                                                                          \
            case 1: NAME(block)(count, 1, first, last, wr, ldw, a, lda, o, ldo, accumulate); break;                 \
            case 2: NAME(block)(count, 2, first, last, wr, ldw, a, lda, o, ldo, accumulate); break;                 \
            case 3: NAME(block)(count, 3, first, last, wr, ldw, a, lda, o, ldo, accumulate); break;                 \
            default: NAME(block)(count, 4, first, last, wr, ldw, a, lda, o, ldo, accumulate);                       \
        }                                                                                                           \
        r += count;                                                                                                 \
    }
    while (r + ROW_BLOCK <= rows) ROWS(ROW_BLOCK)
    while (r + 2 <= rows) ROWS(2)
    while (r < rows) ROWS(1)
#undef ROWS
}

/* The same for a tile: as many columns as it has points. */
static void NAME(product)(long rows, const long *from, const long *to, long k, const REAL *w, long ldw, const REAL *a,
                          REAL *out, int accumulate) {
    NAME(rows_of)(4, rows, from, to, k, w, ldw, a, TILE, out, TILE, accumulate);
}

/* gw (rows x columns) += g x^T summed over the points of a tile; transposed is x^T, ldt wide, zero beyond columns. */
static void NAME(outer)(long rows, long columns, const long *to, const REAL *g, const REAL *transposed, long ldt,
                        REAL *gw) {
    /* A row group needs no more columns than its last row reads: the loop over columns is outside, so that the
     * columns of transposed stay in the nearest cache. */
    for (long c = 0; c < columns; c += 4 * NAME(LANES)) {
        long vectors = (columns - c + NAME(LANES) - 1) / NAME(LANES);
        if (vectors > 4) vectors = 4;
        long start = 0;
        if (to)
            while (start < rows && to[start] <= c) start++;
        NAME(rows_of)
        ((int)vectors, rows - start, NULL, NULL, TILE, g + start * TILE, TILE, transposed + c, ldt,
         gw + start * ldt + c, ldt, 1);
    }
}

INLINE long NAME(padded)(long columns) { return (columns + NAME(LANES) - 1) / NAME(LANES) * NAME(LANES); }

/* Columns of points (count, stride) into a tile (columns, TILE): all of them, or those that which lists. What is missing
 * of a full tile becomes zero. */
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

/* A tile (rows, TILE) transposed: (TILE, padded(rows)), zero in the padding. */
static void NAME(transpose_tile)(const REAL *restrict tile, long rows, REAL *restrict out) {
    const long ld = NAME(padded)(rows), whole = rows / NAME(LANES) * NAME(LANES);
    for (long start = 0; start < whole; start += NAME(LANES))
        for (long j = 0; j < TILE; j += 4) {
            /* Where the tile comes from a distant cache, reading whole lines of it matters most. */
            if (j % 16 == 0)
                for (long r = 0; r < NAME(LANES); r++) __builtin_prefetch(tile + (start + NAME(LANES) + r) * TILE + j);
            for (long i = j; i < j + 4; i++)
                for (long r = 0; r < NAME(LANES); r++) out[i * ld + start + r] = tile[(start + r) * TILE + i];
        }
    for (long i = 0; i < TILE && whole < ld; i++)
        for (long r = whole; r < ld; r++) out[i * ld + r] = r < rows ? tile[r * TILE + i] : 0;
}

static void NAME(sum_of_rows)(const REAL *tile, long rows, REAL *sums) {
    for (long r = 0; r < rows; r++) {
        NAME(vr) total = {0};
        for (long i = 0; i < TILE; i += NAME(LANES)) total += *(const NAME(vr_memory) *)(tile + r * TILE + i);
        REAL sum = 0;
        for (int i = 0; i < NAME(LANES); i++) sum += total[i];
        sums[r] += sum;
    }
}

/* The loops below have no choice inside them, or they would not become vector instructions. */

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

/* A NaN is not rectified away, so that a broken point stays recognisable. */
static void NAME(rectify)(const REAL *restrict tile, long n, REAL *restrict active) {
    for (long i = 0; i < n; i++) active[i] = tile[i] < 0 ? 0 : tile[i];
}

/* The gradient before the rectifier, from the one after it. */
static void NAME(rectify_backward)(REAL *restrict gradient, long n, const REAL *restrict active) {
    for (long i = 0; i < n; i++) gradient[i] = active[i] > 0 ? gradient[i] : 0;
}

static void NAME(add)(REAL *restrict sum, long n, const REAL *restrict more) {
    for (long i = 0; i < n; i++) sum[i] += more[i];
}
