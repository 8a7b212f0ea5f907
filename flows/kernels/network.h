/* Residual networks on one tile: evaluated at once, or feature by feature, and their gradients.
 *
 * Included once for each type of tensor. A masked network has units sorted by degree (see MaskedResidualNet), so that
 * every mask is a range of columns for each row.
 */

/* A linear layer; forward and backward pass read its weight in place. */
typedef struct {
    long rows, columns; /* outputs, inputs */
    NAME(matrix) weight, transposed;
    const REAL *bias;
    long offset; /* of its gradient in a thread's sums: weight (rows, padded(columns)), then bias (rows) */
    long number; /* of its weight among the tensors; its bias is the next one */
} NAME(linear);

typedef struct {
    long inputs, hidden, blocks, outputs;
    const int64_t *known; /* NULL: no masks */
    NAME(linear) first, one[MOST_BLOCKS], two[MOST_BLOCKS], last;
    const REAL *terms[MOST_BLOCKS + 1]; /* (points, hidden): what the context adds; NULL: no context */
    REAL *g_terms[MOST_BLOCKS + 1];
    const REAL *keeps[MOST_BLOCKS]; /* (points, hidden): factors of dropout; NULL: no dropout */
} NAME(network);

static NAME(linear) NAME(linear_of)(long rows, long columns, void *const *tensors, long number, const long *to,
                                    const long *from, long *offset) {
    NAME(linear) l = {.rows = rows, .columns = columns, .offset = *offset, .number = number};
    l.bias = tensors[number + 1];
    l.weight = (NAME(matrix)){tensors[number], columns, 1, columns, NULL, to};
    l.transposed = (NAME(matrix)){tensors[number], 1, columns, rows, from, NULL};
    *offset += rows * NAME(padded)(columns) + rows;
    return l;
}

/* Set up the network of a layer; the ranges of the masks follow from known. offset: of its gradients in the sums. */
static void NAME(open_network)(const layer *c, void *const *tensors, void *const *g_tensors, NAME(network) * n,
                               long *offset, arena *memory) {
    long *first_to = NULL, *first_from = NULL, *within_to = NULL, *within_from = NULL, *last_to = NULL,
         *last_from = NULL;
    const long hidden = c->hidden, outputs = c->values * c->size;
    n->inputs = c->inputs, n->hidden = hidden, n->blocks = c->blocks, n->outputs = outputs, n->known = c->known;
    if (c->known) {
        const int64_t *known = c->known;
        first_to = take(memory, sizeof(long) * hidden), within_to = take(memory, sizeof(long) * hidden);
        within_from = take(memory, sizeof(long) * hidden), last_from = take(memory, sizeof(long) * hidden);
        first_from = take(memory, sizeof(long) * c->inputs), last_to = take(memory, sizeof(long) * outputs);
        if (memory->failed) return;
        long degree = 0;
        for (long u = 0; u < hidden; u++) {
            while (known[degree] <= u) degree++;
            first_to[u] = degree, within_to[u] = known[degree];
            within_from[u] = degree ? known[degree - 1] : 0;
            last_from[u] = degree * c->size;
        }
        for (long d = 0; d < c->inputs; d++) first_from[d] = known[d];
        for (long d = 0; d < c->values; d++)
            for (long k = 0; k < c->size; k++) last_to[d * c->size + k] = known[d];
    }
    long t = c->first;
    n->first = NAME(linear_of)(hidden, c->inputs, tensors, t, first_to, first_from, offset);
    n->terms[0] = tensors[t + 2], n->g_terms[0] = g_tensors ? g_tensors[t + 2] : NULL;
    t += 3;
    for (long b = 0; b < c->blocks; b++, t += 6) {
        n->one[b] = NAME(linear_of)(hidden, hidden, tensors, t, within_to, within_from, offset);
        n->terms[b + 1] = tensors[t + 2], n->g_terms[b + 1] = g_tensors ? g_tensors[t + 2] : NULL;
        n->keeps[b] = tensors[t + 3];
        n->two[b] = NAME(linear_of)(hidden, hidden, tensors, t + 4, within_to, within_from, offset);
    }
    n->last = NAME(linear_of)(outputs, hidden, tensors, t, last_to, last_from, offset);
}

/* Evaluate the network on one tile: inputs (inputs, TILE) to parameters (outputs, TILE). Activations are stored in the
 * order in which the backward pass reads them: of the input layer, then of both layers of each block. */
static void NAME(evaluate)(const NAME(network) * n, long start, long count, const REAL *inputs,
                           REAL *activations, REAL *h, REAL *g, REAL *swap, REAL *parameters) {
    const long hidden = n->hidden, size = hidden * TILE;
    const REAL *term = NULL, *keep = NULL;
    NAME(product)(hidden, &n->first.weight, inputs, h, 0);
    if (n->terms[0]) NAME(to_tile)(n->terms[0] + start * hidden, count, hidden, hidden, NULL, swap), term = swap;
    NAME(add_bias)(h, hidden, n->first.bias, term);
    REAL *active = activations;
    NAME(rectify)(h, size, active);
    for (long b = 0; b < n->blocks; b++) {
        const NAME(linear) *one = &n->one[b], *two = &n->two[b];
        NAME(product)(hidden, &one->weight, active, g, 0);
        term = keep = NULL;
        if (n->terms[b + 1]) NAME(to_tile)(n->terms[b + 1] + start * hidden, count, hidden, hidden, NULL, swap), term = swap;
        NAME(add_bias)(g, hidden, one->bias, term);
        if (n->keeps[b]) NAME(to_tile)(n->keeps[b] + start * hidden, count, hidden, hidden, NULL, swap), keep = swap;
        active += size;
        NAME(rectify)(g, size, active);
        if (keep) NAME(scale)(active, size, keep);
        NAME(product)(hidden, &two->weight, active, h, 1);
        NAME(add_bias)(h, hidden, two->bias, NULL);
        active += size;
        NAME(rectify)(h, size, active);
    }
    NAME(product)(n->last.rows, &n->last.weight, active, parameters, 0);
    NAME(add_bias)(parameters, n->last.rows, n->last.bias, NULL);
}

/* Compute the hidden units start to stop; their inputs are the first columns features and all units before stop. */
static void NAME(advance)(const NAME(network) * n, long start, long stop, long columns, const REAL *x,
                          const REAL *terms, REAL *activations, REAL *h, REAL *g) {
    const long count = stop - start, hidden = n->hidden, size = hidden * TILE, at = start * TILE;
    if (!count) return;
    const NAME(linear) *first = &n->first;
    NAME(product_of)(&first->weight, start, count, 0, columns, x, h, 0);
    NAME(add_bias)(h, count, first->bias + start, n->terms[0] ? terms + at : NULL);
    REAL *active = activations;
    NAME(rectify)(h, count * TILE, active + at);
    for (long b = 0; b < n->blocks; b++) {
        const NAME(linear) *one = &n->one[b], *two = &n->two[b];
        NAME(product_of)(&one->weight, start, count, 0, stop, active, g, 0);
        NAME(add_bias)(g, count, one->bias + start, n->terms[b + 1] ? terms + (b + 1) * size + at : NULL);
        active += size;
        NAME(rectify)(g, count * TILE, active + at);
        NAME(product_of)(&two->weight, start, count, 0, stop, active, h, 1);
        NAME(add_bias)(h, count, two->bias + start, NULL);
        active += size;
        NAME(rectify)(h, count * TILE, active + at);
    }
}

/* Add the gradients of a linear layer's weight and bias to sums, or write them there if this is a thread's first tile, from the gradient of its output on one tile. x_t is
 * memory for the transposed input. Nothing is computed if sums is NULL. */
INLINE void NAME(weight_gradient)(const NAME(linear) * l, const REAL *g, const REAL *input, REAL *x_t, REAL *sums,
                                 int accumulate) {
    if (!sums) return;
    const long ld = NAME(padded)(l->columns);
    NAME(transpose_tile)(input, l->columns, x_t);
    NAME(outer)(l->rows, l->columns, l->weight.to, g, x_t, ld, sums + l->offset, accumulate);
    NAME(sum_of_rows)(g, l->rows, sums + l->offset + l->rows * ld, accumulate);
}

/* Add up the sums of all threads; the masked part of a weight has gradient zero. */
static void NAME(write_gradient)(const NAME(linear) * l, const REAL *sums, long threads, long stride,
                                 void *const *g_tensors) {
    const long ld = NAME(padded)(l->columns);
    REAL *gw = g_tensors[l->number], *gb = g_tensors[l->number + 1];
#pragma omp for schedule(static) nowait
    for (long r = 0; r < l->rows; r++) {
        const long to = l->weight.to ? l->weight.to[r] : l->columns;
        REAL *restrict row = gw + r * l->columns;
        memcpy(row, sums + l->offset + r * ld, sizeof(REAL) * to);
        for (long c = to; c < l->columns; c++) row[c] = 0;
        gb[r] = sums[l->offset + l->rows * ld + r];
        for (long t = 1; t < threads; t++) {
            const REAL *restrict more = sums + t * stride + l->offset + r * ld;
            for (long c = 0; c < to; c++) row[c] += more[c];
            gb[r] += sums[t * stride + l->offset + l->rows * ld + r];
        }
    }
}

/* Backward pass of the network on one tile: from g_parameters (outputs, TILE), add the gradients of the weights to sums
 * and write the gradient of the inputs to g_inputs. */
static void NAME(evaluate_backward)(const NAME(network) * n, long start, long count, const REAL *inputs,
                                    const REAL *activations, REAL *g_parameters, REAL *dh, REAL *dg, REAL *x_t,
                                    REAL *swap, REAL *sums, int accumulate, REAL *g_inputs) {
    const long hidden = n->hidden, size = hidden * TILE;
    const REAL *active = activations + 2 * n->blocks * size;
    NAME(weight_gradient)(&n->last, g_parameters, active, x_t, sums, accumulate);
    NAME(product)(hidden, &n->last.transposed, g_parameters, dh, 0);
    NAME(rectify_backward)(dh, size, active);
    for (long b = n->blocks - 1; b >= 0; b--) {
        const NAME(linear) *one = &n->one[b], *two = &n->two[b];
        active -= size;
        NAME(weight_gradient)(two, dh, active, x_t, sums, accumulate);
        NAME(product)(hidden, &two->transposed, dh, dg, 0);
        const REAL *keep = NULL;
        if (n->keeps[b]) NAME(to_tile)(n->keeps[b] + start * hidden, count, hidden, hidden, NULL, swap), keep = swap;
        NAME(rectify_backward)(dg, size, active);
        if (keep) NAME(scale)(dg, size, keep);
        if (n->g_terms[b + 1]) NAME(from_tile)(dg, count, hidden, hidden, NULL, n->g_terms[b + 1] + start * hidden);
        active -= size;
        NAME(weight_gradient)(one, dg, active, x_t, sums, accumulate);
        NAME(product)(hidden, &one->transposed, dg, swap, 0);
        NAME(rectify_backward)(swap, size, active);
        NAME(add)(dh, size, swap);
    }
    if (n->g_terms[0]) NAME(from_tile)(dh, count, hidden, hidden, NULL, n->g_terms[0] + start * hidden);
    NAME(weight_gradient)(&n->first, dh, inputs, x_t, sums, accumulate);
    NAME(product)(n->first.columns, &n->first.transposed, dh, g_inputs, 0);
}

