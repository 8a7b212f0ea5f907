/* One layer: a residual network computes the parameters of univariate maps, which are applied to some features.
 *
 * Included once for each type of tensor. In an autoregressive layer the network is masked and reads all features, and
 * all features are mapped. In a coupling layer the network is not masked and reads the identity features, and the
 * others are mapped. A tile of points passes through the whole layer before the next one starts, so activations stay in
 * the cache.
 */

/* A linear layer; forward and backward pass read its weight in place. */
typedef struct {
    long rows, columns; /* outputs, inputs */
    NAME(matrix) weight, transposed;
    const REAL *bias;
    long offset; /* of its gradient in a thread's sums: weight (rows, padded(columns)), then bias (rows) */
} NAME(linear);

typedef struct {
    NAME(linear) first, one[MOST_BLOCKS], two[MOST_BLOCKS], last;
    const REAL *terms[MOST_BLOCKS + 1]; /* (points, hidden): what the context adds; NULL: no context */
    const REAL *keeps[MOST_BLOCKS];     /* (points, hidden): factors of dropout; NULL: no dropout */
    long sums;                          /* total length of the gradients of weights and biases */
} NAME(network);

static NAME(linear) NAME(linear_of)(long rows, long columns, void *const *tensors, const long *to, const long *from,
                                    long *offset) {
    NAME(linear) l = {.rows = rows, .columns = columns, .bias = tensors[1], .offset = *offset};
    l.weight = (NAME(matrix)){tensors[0], columns, 1, columns, NULL, to};
    l.transposed = (NAME(matrix)){tensors[0], 1, columns, rows, from, NULL};
    *offset += rows * NAME(padded)(columns) + rows;
    return l;
}

/* Set up the network of a call; the ranges of the masks follow from known (see MaskedResidualNet). */
static void NAME(open)(const call *c, NAME(network) * n, arena *memory) {
    long *first_to = NULL, *first_from = NULL, *within_to = NULL, *within_from = NULL, *last_to = NULL,
         *last_from = NULL;
    const long hidden = c->hidden, outputs = c->values * c->size;
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
    void *const *t = c->tensors;
    long offset = 0;
    n->first = NAME(linear_of)(hidden, c->inputs, t, first_to, first_from, &offset);
    n->terms[0] = t[2];
    t += 3;
    for (long b = 0; b < c->blocks; b++, t += 6) {
        n->one[b] = NAME(linear_of)(hidden, hidden, t, within_to, within_from, &offset);
        n->terms[b + 1] = t[2];
        n->keeps[b] = t[3];
        n->two[b] = NAME(linear_of)(hidden, hidden, t + 4, within_to, within_from, &offset);
    }
    n->last = NAME(linear_of)(outputs, hidden, t, last_to, last_from, &offset);
    n->sums = offset;
}

/* Evaluate the network on one tile: inputs (inputs, TILE) to parameters (outputs, TILE). Activations are stored in the
 * order in which the backward pass reads them: of the input layer, then of both layers of each block. */
static void NAME(evaluate)(const NAME(network) * n, const call *c, long start, long count, const REAL *inputs,
                           REAL *activations, REAL *h, REAL *g, REAL *swap, REAL *parameters) {
    const long hidden = c->hidden, size = hidden * TILE;
    const REAL *term = NULL, *keep = NULL;
    NAME(product)(hidden, &n->first.weight, inputs, h, 0);
    if (n->terms[0]) NAME(to_tile)(n->terms[0] + start * hidden, count, hidden, hidden, NULL, swap), term = swap;
    NAME(add_bias)(h, hidden, n->first.bias, term);
    REAL *active = activations;
    NAME(rectify)(h, size, active);
    for (long b = 0; b < c->blocks; b++) {
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

/* Apply the univariate maps to one tile: values to out, and the sum of their log-derivatives to log_det. */
static void NAME(map_tile)(const call *c, const REAL *values, const REAL *parameters, REAL *out, REAL *log_det) {
    for (long i = 0; i < TILE; i += VD) {
        vd total = all(0.0), result, log_derivative;
        for (long d = 0; d < c->values; d++) {
            const REAL *p = parameters + d * c->size * TILE + i;
            if (c->inverse) NAME(inverse_1)(p, LOAD(values + d * TILE + i), &c->map, &result, &log_derivative);
            else NAME(forward_1)(p, LOAD(values + d * TILE + i), &c->map, &result, &log_derivative);
            STORE(out + d * TILE + i, result);
            total += log_derivative;
        }
        STORE(log_det + i, total);
    }
}

/* Compute the hidden units start to stop; their inputs are the first columns features and all units before stop. */
static void NAME(advance)(const NAME(network) * n, const call *c, long start, long stop, long columns, const REAL *x,
                          const REAL *terms, REAL *activations, REAL *h, REAL *g) {
    const long count = stop - start, hidden = c->hidden, size = hidden * TILE, at = start * TILE;
    if (!count) return;
    const NAME(linear) *first = &n->first;
    NAME(product_of)(&first->weight, start, count, 0, columns, x, h, 0);
    NAME(add_bias)(h, count, first->bias + start, n->terms[0] ? terms + at : NULL);
    REAL *active = activations;
    NAME(rectify)(h, count * TILE, active + at);
    for (long b = 0; b < c->blocks; b++) {
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

/* Invert an autoregressive layer on one tile, feature by feature: z to x, both (values, TILE). Each hidden unit and
 * each parameter is computed once, when the last feature it reads becomes known. */
static void NAME(solve)(const NAME(network) * n, const call *c, const REAL *z, const REAL *terms, REAL *activations,
                        REAL *h, REAL *g, REAL *parameters, REAL *x, REAL *log_det) {
    const long hidden = c->hidden;
    const int64_t *known = c->known;
    const REAL *top = activations + 2 * c->blocks * hidden * TILE;
    for (long i = 0; i < TILE; i++) log_det[i] = 0;
    NAME(advance)(n, c, 0, known[0], 0, x, terms, activations, h, g);
    for (long d = 0; d < c->values; d++) {
        REAL *p = parameters + d * c->size * TILE;
        const long row = d * c->size;
        NAME(product_of)(&n->last.weight, row, c->size, 0, known[d], top, p, 0);
        NAME(add_bias)(p, c->size, n->last.bias + row, NULL);
        for (long i = 0; i < TILE; i += VD) {
            vd result, log_derivative;
            NAME(inverse_1)(p + i, LOAD(z + d * TILE + i), &c->map, &result, &log_derivative);
            STORE(x + d * TILE + i, result);
            STORE(log_det + i, LOAD(log_det + i) + log_derivative);
        }
        NAME(advance)(n, c, known[d], known[d + 1], d + 1, x, terms, activations, h, g);
    }
}

/* Compute z (points, features) and log_det (points,) from x. If saved is not NULL, activations and parameters of each
 * tile are written there for the backward pass. */
int NAME(layer_forward)(const call *c, const REAL *x, REAL *z, REAL *log_det, REAL *saved) {
    NAME(network) n;
    arena *shared = open_arena(0);
    NAME(open)(c, &n, shared);
    if (shared->failed) return 1;
    const long hidden = c->hidden, size = hidden * TILE, outputs = c->values * c->size;
    const long kept = (1 + 2 * c->blocks) * size, tiles = (c->points + TILE - 1) / TILE;
    int failed = 0;
#pragma omp parallel for schedule(dynamic) num_threads(c->threads) if (c->threads > 1 && tiles > 1) reduction(| : failed)
    for (long tile = 0; tile < tiles; tile++) {
        arena *own = open_arena(1);
        const long start = tile * TILE, count = c->points - start < TILE ? c->points - start : TILE;
        REAL *inputs = take(own, sizeof(REAL) * c->inputs * TILE);
        REAL *values = c->transformed_features ? take(own, sizeof(REAL) * c->values * TILE) : inputs;
        REAL *h = take(own, sizeof(REAL) * size), *g = take(own, sizeof(REAL) * size);
        REAL *swap = take(own, sizeof(REAL) * size * (c->sequential ? 1 + c->blocks : 1));
        REAL *out = take(own, sizeof(REAL) * c->values * TILE), *total = take(own, sizeof(REAL) * TILE);
        REAL *activations = saved ? saved + tile * (kept + outputs * TILE) : take(own, sizeof(REAL) * kept);
        REAL *parameters = saved ? activations + kept : take(own, sizeof(REAL) * outputs * TILE);
        if (own->failed) {
            failed = 1;
            continue;
        }
        const REAL *from = x + start * c->features;
        NAME(to_tile)(from, count, c->inputs, c->features, c->identity_features, inputs);
        if (c->transformed_features) NAME(to_tile)(from, count, c->values, c->features, c->transformed_features, values);
        if (c->sequential) {
            for (long b = 0; b <= c->blocks; b++)
                if (n.terms[b]) NAME(to_tile)(n.terms[b] + start * hidden, count, hidden, hidden, NULL, swap + b * size);
            NAME(solve)(&n, c, values, swap, activations, h, g, parameters, out, total);
        } else {
            NAME(evaluate)(&n, c, start, count, inputs, activations, h, g, swap, parameters);
            NAME(map_tile)(c, values, parameters, out, total);
        }
        for (long i = 0; i < count; i++) log_det[start + i] = total[i];
        REAL *to = z + start * c->features;
        NAME(from_tile)(out, count, c->values, c->features, c->transformed_features, to);
        if (c->identity_features) NAME(from_tile)(inputs, count, c->inputs, c->features, c->identity_features, to);
    }
    return failed;
}

/* Add the gradients of a linear layer's weight and bias to sums, from the gradient of its output on one tile. x_t is
 * memory for the transposed input. Nothing is computed if sums is NULL. */
INLINE void NAME(weight_gradient)(const NAME(linear) * l, const REAL *g, const REAL *input, REAL *x_t, REAL *sums) {
    if (!sums) return;
    const long ld = NAME(padded)(l->columns);
    NAME(transpose_tile)(input, l->columns, x_t);
    NAME(outer)(l->rows, l->columns, l->weight.to, g, x_t, ld, sums + l->offset);
    NAME(sum_of_rows)(g, l->rows, sums + l->offset + l->rows * ld);
}

/* Add up the sums of all threads; the masked part of a weight has gradient zero. */
static void NAME(write_gradient)(const NAME(linear) * l, const REAL *sums, long threads, long stride, REAL *gw, REAL *gb) {
    const long ld = NAME(padded)(l->columns);
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
static void NAME(evaluate_backward)(const NAME(network) * n, const call *c, long start, long count, const REAL *inputs,
                                    const REAL *activations, REAL *g_parameters, REAL *dh, REAL *dg, REAL *x_t,
                                    REAL *swap, REAL *sums, REAL *g_inputs) {
    const long hidden = c->hidden, size = hidden * TILE;
    const REAL *active = activations + 2 * c->blocks * size;
    NAME(weight_gradient)(&n->last, g_parameters, active, x_t, sums);
    NAME(product)(hidden, &n->last.transposed, g_parameters, dh, 0);
    NAME(rectify_backward)(dh, size, active);
    void *const *g_terms = c->g_terms;
    for (long b = c->blocks - 1; b >= 0; b--) {
        const NAME(linear) *one = &n->one[b], *two = &n->two[b];
        active -= size;
        NAME(weight_gradient)(two, dh, active, x_t, sums);
        NAME(product)(hidden, &two->transposed, dh, dg, 0);
        const REAL *keep = NULL;
        if (n->keeps[b]) NAME(to_tile)(n->keeps[b] + start * hidden, count, hidden, hidden, NULL, swap), keep = swap;
        NAME(rectify_backward)(dg, size, active);
        if (keep) NAME(scale)(dg, size, keep);
        if (g_terms[b + 1]) NAME(from_tile)(dg, count, hidden, hidden, NULL, (REAL *)g_terms[b + 1] + start * hidden);
        active -= size;
        NAME(weight_gradient)(one, dg, active, x_t, sums);
        NAME(product)(hidden, &one->transposed, dg, swap, 0);
        NAME(rectify_backward)(swap, size, active);
        NAME(add)(dh, size, swap);
    }
    if (g_terms[0]) NAME(from_tile)(dh, count, hidden, hidden, NULL, (REAL *)g_terms[0] + start * hidden);
    NAME(weight_gradient)(&n->first, dh, inputs, x_t, sums);
    NAME(product)(n->first.columns, &n->first.transposed, dh, g_inputs, 0);
}

/* Backward pass of solve on one tile, feature by feature, by the implicit function theorem: gx (values, TILE) holds the
 * gradient of x on entry and that of z on return. It is a back substitution with the triangular Jacobian, for the cost
 * of one backward pass. dh (blocks + 1) and dg (blocks) hold the gradients of all pre-activations. */
static void NAME(solve_backward)(const NAME(network) * n, const call *c, const REAL *x, const REAL *activations,
                                 const REAL *parameters, const REAL *g_log, REAL *gx, REAL *gp, REAL *dh, REAL *dg) {
    const long hidden = c->hidden, size = hidden * TILE, outputs = c->values * c->size, blocks = c->blocks;
    const int64_t *known = c->known;
    for (long d = c->values - 1; d >= -1; d--) {
        /* The units whose last input is feature d: everything that reads them is done. */
        const long start = d >= 0 ? known[d] : 0, count = known[d + 1] - start, at = start * TILE;
        const long row = (d + 1) * c->size;
        if (count) {
            const REAL *active = activations + 2 * blocks * size;
            REAL *top = dh + blocks * size + at;
            NAME(product_of)(&n->last.transposed, start, count, row, outputs, gp, top, 0);
            NAME(rectify_backward)(top, count * TILE, active + at);
            for (long b = blocks - 1; b >= 0; b--) {
                REAL *dg_b = dg + b * size + at, *dh_b = dh + b * size + at;
                active -= size;
                NAME(product_of)(&n->two[b].transposed, start, count, start, hidden, dh + (b + 1) * size, dg_b, 0);
                NAME(rectify_backward)(dg_b, count * TILE, active + at);
                active -= size;
                NAME(product_of)(&n->one[b].transposed, start, count, start, hidden, dg + b * size, dh_b, 0);
                NAME(rectify_backward)(dh_b, count * TILE, active + at);
                NAME(add)(dh_b, count * TILE, dh_b + size);
            }
        }
        if (d < 0) break;
        REAL *gx_d = gx + d * TILE, *gp_d = gp + d * c->size * TILE;
        const REAL *p = parameters + d * c->size * TILE;
        NAME(product_of)(&n->first.transposed, d, 1, start, hidden, dh, gx_d, 1);
        for (long i = 0; i < TILE; i += VD)
            STORE(gx_d + i, NAME(backward_1)(p + i, LOAD(x + d * TILE + i), LOAD(gx_d + i), LOAD(g_log + i), &c->map, 1,
                                             gp_d + i));
    }
}

/* Gradients of the weights and of the context terms, after solve_backward. */
static void NAME(solve_gradients)(const NAME(network) * n, const call *c, long start, long count, const REAL *x,
                                  const REAL *activations, const REAL *gp, const REAL *dh, const REAL *dg, REAL *x_t,
                                  REAL *sums) {
    const long hidden = c->hidden, size = hidden * TILE;
    NAME(weight_gradient)(&n->first, dh, x, x_t, sums);
    for (long b = 0; b < c->blocks; b++) {
        NAME(weight_gradient)(&n->one[b], dg + b * size, activations + 2 * b * size, x_t, sums);
        NAME(weight_gradient)(&n->two[b], dh + (b + 1) * size, activations + (2 * b + 1) * size, x_t, sums);
    }
    NAME(weight_gradient)(&n->last, gp, activations + 2 * c->blocks * size, x_t, sums);
    void *const *g_terms = c->g_terms;
    for (long b = 0; b <= c->blocks; b++)
        if (g_terms[b]) {
            const REAL *g = b ? dg + (b - 1) * size : dh;
            NAME(from_tile)(g, count, hidden, hidden, NULL, (REAL *)g_terms[b] + start * hidden);
        }
}

/* Gradient gx of gz . z + gl . log_det, from what layer_forward saved. x is the layer's value on the data side: the
 * input of a forward call, and the result of an inverse one. Both directions save the same, so that one may be
 * differentiated after the other was evaluated. If g_tensors is NULL only gx is computed, with half the products. */
int NAME(layer_backward)(const call *c, const REAL *x, const REAL *gz, const REAL *gl, const REAL *saved, REAL *gx) {
    NAME(network) n;
    arena *shared = open_arena(0);
    NAME(open)(c, &n, shared);
    const long hidden = c->hidden, size = hidden * TILE, outputs = c->values * c->size, blocks = c->blocks;
    const long kept = (1 + 2 * blocks) * size, tiles = (c->points + TILE - 1) / TILE;
    const long widest = NAME(padded)(c->inputs > hidden ? c->inputs : hidden);
    const long threads = c->threads < tiles ? c->threads : tiles ? tiles : 1, stride = (n.sums + 63) / 64 * 64;
    const int wanted = c->g_tensors != NULL;
    REAL *all_sums = wanted ? take(shared, sizeof(REAL) * stride * threads) : NULL;
    if (shared->failed) return 1;
    if (wanted) memset(all_sums, 0, sizeof(REAL) * stride * threads);
    int failed = 0;
#pragma omp parallel num_threads(threads) if (threads > 1) reduction(| : failed)
    {
        REAL *sums = wanted ? all_sums + MEMBER * stride : NULL;
#pragma omp for schedule(static)
        for (long tile = 0; tile < tiles; tile++) {
            arena *own = open_arena(1);
            const long start = tile * TILE, count = c->points - start < TILE ? c->points - start : TILE;
            REAL *inputs = take(own, sizeof(REAL) * c->inputs * TILE);
            REAL *g_inputs = take(own, sizeof(REAL) * c->inputs * TILE);
            REAL *values = c->transformed_features ? take(own, sizeof(REAL) * c->values * TILE) : inputs;
            REAL *gv = take(own, sizeof(REAL) * c->values * TILE), *g_log = take(own, sizeof(REAL) * TILE);
            REAL *dh = take(own, sizeof(REAL) * size * (c->sequential ? blocks + 1 : 1));
            REAL *dg = take(own, sizeof(REAL) * size * (c->sequential && blocks ? blocks : 1));
            REAL *swap = take(own, sizeof(REAL) * size), *x_t = take(own, sizeof(REAL) * widest * TILE);
            REAL *gp = take(own, sizeof(REAL) * outputs * TILE);
            if (own->failed) {
                failed = 1;
                continue;
            }
            const REAL *activations = saved + tile * (kept + outputs * TILE), *parameters = activations + kept;
            const REAL *from = x + start * c->features, *g_from = gz + start * c->features;
            REAL *to = gx + start * c->features;
            NAME(to_tile)(from, count, c->inputs, c->features, c->identity_features, inputs);
            if (c->transformed_features) NAME(to_tile)(from, count, c->values, c->features, c->transformed_features, values);
            NAME(to_tile)(g_from, count, c->values, c->features, c->transformed_features, gv);
            NAME(to_tile)(gl + start, count, 1, 1, NULL, g_log);
            if (c->sequential) {
                NAME(solve_backward)(&n, c, inputs, activations, parameters, g_log, gv, gp, dh, dg);
                if (wanted)
                    NAME(solve_gradients)(&n, c, start, count, inputs, activations, gp, dh, dg, x_t, sums);
                NAME(from_tile)(gv, count, c->values, c->features, NULL, to);
                continue;
            }
            for (long d = 0; d < c->values; d++)
                for (long i = 0; i < TILE; i += VD) {
                    const long at = d * TILE + i, p = d * c->size * TILE + i;
                    STORE(gv + at, NAME(backward_1)(parameters + p, LOAD(values + at), LOAD(gv + at), LOAD(g_log + i),
                                                    &c->map, c->inverse, gp + p));
                }
            NAME(evaluate_backward)(&n, c, start, count, inputs, activations, gp, dh, dg, x_t, swap, sums, g_inputs);
            if (c->identity_features) {
                NAME(from_tile)(gv, count, c->values, c->features, c->transformed_features, to);
                /* The identity features: the gradient of z plus that of the network's input. */
                NAME(to_tile)(g_from, count, c->inputs, c->features, c->identity_features, inputs);
                NAME(add)(g_inputs, c->inputs * TILE, inputs);
            } else NAME(add)(g_inputs, c->inputs * TILE, gv);
            NAME(from_tile)(g_inputs, count, c->inputs, c->features, c->identity_features, to);
        }
        /* All threads have finished the loop, so their sums can be added up. */
        void *const *t = c->g_tensors;
        if (wanted) {
            NAME(write_gradient)(&n.first, all_sums, threads, stride, t[0], t[1]);
            for (long b = 0; b < blocks; b++) {
                NAME(write_gradient)(&n.one[b], all_sums, threads, stride, t[2 + 4 * b], t[3 + 4 * b]);
                NAME(write_gradient)(&n.two[b], all_sums, threads, stride, t[4 + 4 * b], t[5 + 4 * b]);
            }
            NAME(write_gradient)(&n.last, all_sums, threads, stride, t[2 + 4 * blocks], t[3 + 4 * blocks]);
        }
    }
    return failed;
}
