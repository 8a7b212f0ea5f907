/* Chains of layers: all layers of a flow in one call, in both directions, and their gradients.
 *
 * Included once for each type of tensor. A layer is one of
 * - NETWORK: a residual network computes the parameters of univariate maps, which are applied to some features. In an
 *   autoregressive layer the network is masked and reads all features, and all features are mapped. In a coupling layer
 *   it is not masked and reads the identity features, and the others are mapped.
 * - NORMALIZE: (x - shift) exp(-log_scale) for each feature.
 * - LINEAR: L U x + bias, L unit lower and U upper triangular with the diagonal exp(log_diagonal).
 * - PERMUTE: another order of the features.
 * A thread takes a group of tiles through all layers, one layer after the other, so that the weights of a layer serve
 * the whole group from the cache, and threads meet only once.
 */

/* Apply the univariate maps of a layer to one tile: values to out (which may be values), and the sum of their
 * log-derivatives to log_det. */
static void NAME(map_tile)(const layer *c, int inverse, const REAL *values, const REAL *parameters, REAL *out,
                           REAL *log_det) {
    for (long i = 0; i < TILE; i += VD) {
        vd total = all(0.0), result, log_derivative;
        for (long d = 0; d < c->values; d++) {
            const REAL *p = parameters + d * c->size * TILE + i;
            if (inverse) NAME(inverse_1)(p, LOAD(values + d * TILE + i), &c->map, &result, &log_derivative);
            else NAME(forward_1)(p, LOAD(values + d * TILE + i), &c->map, &result, &log_derivative);
            STORE(out + d * TILE + i, result);
            total += log_derivative;
        }
        STORE(log_det + i, total);
    }
}

/* Invert an autoregressive layer on one tile, feature by feature: z to x, both (values, TILE) and maybe
 * the same. Each hidden unit and
 * each parameter is computed once, when the last feature it reads becomes known. */
static void NAME(solve)(const NAME(network) * n, const layer *c, const REAL *z, const REAL *terms, REAL *activations,
                        REAL *h, REAL *g, REAL *parameters, REAL *x, REAL *log_det) {
    const long hidden = n->hidden;
    const int64_t *known = n->known;
    const REAL *top = activations + 2 * n->blocks * hidden * TILE;
    for (long i = 0; i < TILE; i++) log_det[i] = 0;
    NAME(advance)(n, 0, known[0], 0, x, terms, activations, h, g);
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
        NAME(advance)(n, known[d], known[d + 1], d + 1, x, terms, activations, h, g);
    }
}

/* Backward pass of solve on one tile, feature by feature, by the implicit function theorem: gx (values, TILE) holds the
 * gradient of x on entry and that of z on return. It is a back substitution with the triangular Jacobian, for the cost
 * of one backward pass. dh (blocks + 1) and dg (blocks) hold the gradients of all pre-activations. */
static void NAME(solve_backward)(const NAME(network) * n, const layer *c, const REAL *x, const REAL *activations,
                                 const REAL *parameters, const REAL *g_log, REAL *gx, REAL *gp, REAL *dh, REAL *dg) {
    const long hidden = n->hidden, size = hidden * TILE, outputs = c->values * c->size, blocks = n->blocks;
    const int64_t *known = n->known;
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
static void NAME(solve_gradients)(const NAME(network) * n, long start, long count, const REAL *x,
                                  const REAL *activations, const REAL *gp, const REAL *dh, const REAL *dg, REAL *x_t,
                                  REAL *sums, int accumulate) {
    const long hidden = n->hidden, size = hidden * TILE;
    NAME(weight_gradient)(&n->first, dh, x, x_t, sums, accumulate);
    for (long b = 0; b < n->blocks; b++) {
        NAME(weight_gradient)(&n->one[b], dg + b * size, activations + 2 * b * size, x_t, sums, accumulate);
        NAME(weight_gradient)(&n->two[b], dh + (b + 1) * size, activations + (2 * b + 1) * size, x_t, sums, accumulate);
    }
    NAME(weight_gradient)(&n->last, gp, activations + 2 * n->blocks * size, x_t, sums, accumulate);
    for (long b = 0; b <= n->blocks; b++)
        if (n->g_terms[b])
            NAME(from_tile)(b ? dg + (b - 1) * size : dh, count, hidden, hidden, NULL, n->g_terms[b] + start * hidden);
}

/* A layer of one call. */
typedef struct {
    const layer *l;
    int inverse, sequential; /* sequential: the network reads the results of the inverted maps, feature by feature */
    NAME(network) network;
    NAME(matrix) lower, upper, lower_t, upper_t; /* of LINEAR, strictly triangular */
    const REAL *shift;                           /* of NORMALIZE, and the bias of LINEAR */
    REAL *scale;       /* factors of NORMALIZE in this direction, diagonal of LINEAR */
    long saved, sums;  /* where its part of the numbers saved by a tile, and of the sums of a thread, begins */
} NAME(stage);

/* All layers of one call, in the order in which they are applied. */
typedef struct {
    NAME(stage) * stages;
    long saved, sums;  /* how many numbers a tile saves and a thread sums up */
    double log_det;    /* of all layers where it is the same for all points */
    long *below, *above;
} NAME(plan);

/* How many numbers a layer saves for a tile: its points on the side of the data, and what else its gradient needs; as
 * saved_by_a_point in layers.py. */
static long NAME(saved_by)(const chain *c, const layer *l) {
    const long points = c->features * TILE;
    switch (l->kind) {
    case NETWORK: return points + ((1 + 2 * l->blocks) * l->hidden + l->values * l->size) * TILE;
    case LINEAR: return 2 * points;
    case NORMALIZE: return points;
    default: return 0;
    }
}

/* Set up a call; returns 1 if there is not enough memory. */
static int NAME(open)(const chain *c, NAME(plan) * plan, arena *memory) {
    const long features = c->features;
    plan->stages = take(memory, sizeof(NAME(stage)) * (c->layers ? c->layers : 1));
    plan->below = take(memory, sizeof(long) * features), plan->above = take(memory, sizeof(long) * features);
    if (memory->failed) return 1;
    for (long r = 0; r < features; r++) plan->below[r] = r, plan->above[r] = r + 1;
    plan->saved = plan->sums = 0, plan->log_det = 0.0;
    for (long i = 0; i < c->layers; i++) {
        const layer *l = &c->layer[i];
        NAME(stage) *s = &plan->stages[c->inverse ? c->layers - 1 - i : i];
        memset(s, 0, sizeof(NAME(stage)));
        s->l = l, s->inverse = l->inverse != c->inverse, s->sequential = s->inverse && l->known;
        s->saved = plan->saved, s->sums = plan->sums;
        plan->saved += NAME(saved_by)(c, l);
        void *const *t = c->tensors + l->first;
        const long square = features * NAME(padded)(features);
        const REAL *logs = NULL;
        switch (l->kind) {
        case NETWORK: NAME(open_network)(l, c->tensors, c->g_tensors, &s->network, &plan->sums, memory); break;
        case NORMALIZE:
            s->shift = t[0], logs = t[1];
            plan->sums += 2 * features;
            break;
        case LINEAR:
            s->lower = (NAME(matrix)){t[0], features, 1, features, NULL, plan->below};
            s->upper = (NAME(matrix)){t[1], features, 1, features, plan->above, NULL};
            s->lower_t = (NAME(matrix)){t[0], 1, features, features, plan->above, NULL};
            s->upper_t = (NAME(matrix)){t[1], 1, features, features, NULL, plan->below};
            logs = t[2], s->shift = t[3];
            plan->sums += 2 * square + 2 * features;
        }
        if (logs) {
            /* The scale of NORMALIZE is e^-log_scale forwards, the diagonal of LINEAR e^log_diagonal in both cases. */
            const int is_negative = l->kind == NORMALIZE && !s->inverse;
            double total = 0.0;
            s->scale = take(memory, sizeof(REAL) * features);
            if (memory->failed) return 1;
            for (long r = 0; r < features; r++) {
                s->scale[r] = exp(is_negative ? -(double)logs[r] : (double)logs[r]);
                total += logs[r];
            }
            plan->log_det += (l->kind == NORMALIZE) != s->inverse ? -total : total;
        }
        plan->sums = (plan->sums + 15) / 16 * 16;
    }
    return memory->failed;
}

/* Memory of a thread for one tile, enough for every layer. */
typedef struct {
    REAL *inputs, *values, *h, *g, *swap, *activations, *parameters, *log;                /* forward */
    REAL *g_inputs, *g_values, *dh, *dg, *x_t, *g_parameters;                             /* backward */
} NAME(scratch);

static void NAME(take_scratch)(const chain *c, int saves, int backward, NAME(scratch) * w, arena *own) {
    long hidden = 0, outputs = 0, swaps = 1, kept = 0, steps = 0, columns = c->features;
    for (long i = 0; i < c->layers; i++) {
        const layer *l = &c->layer[i];
        if (l->kind != NETWORK) continue;
#define LARGEST(a, b) a = a > (b) ? a : (b)
        LARGEST(hidden, l->hidden);
        LARGEST(outputs, l->values * l->size);
        LARGEST(kept, (1 + 2 * l->blocks) * l->hidden);
        if (l->known) LARGEST(swaps, 1 + l->blocks), steps = swaps;
#undef LARGEST
    }
    const long points = c->features * TILE, size = hidden * TILE;
    memset(w, 0, sizeof(*w));
    w->inputs = take(own, sizeof(REAL) * points), w->values = take(own, sizeof(REAL) * points);
    w->swap = take(own, sizeof(REAL) * size * swaps);
    if (backward) {
        if (hidden > columns) columns = hidden;
        w->g_inputs = take(own, sizeof(REAL) * points), w->g_values = take(own, sizeof(REAL) * points);
        w->dh = take(own, sizeof(REAL) * size * (steps ? steps : 1));
        w->dg = take(own, sizeof(REAL) * size * (steps ? steps : 1));
        w->x_t = take(own, sizeof(REAL) * NAME(padded)(columns) * TILE);
        w->g_parameters = take(own, sizeof(REAL) * outputs * TILE);
    } else {
        w->h = take(own, sizeof(REAL) * size), w->g = take(own, sizeof(REAL) * size);
        w->log = take(own, sizeof(REAL) * TILE);
        if (saves) return;
        w->activations = take(own, sizeof(REAL) * kept * TILE);
        w->parameters = take(own, sizeof(REAL) * outputs * TILE);
    }
}

static void NAME(pick)(const REAL *tile, long count, const int64_t *which, REAL *out) {
    for (long r = 0; r < count; r++) memcpy(out + r * TILE, tile + which[r] * TILE, sizeof(REAL) * TILE);
}

static void NAME(put)(const REAL *rows, long count, const int64_t *which, REAL *tile) {
    for (long r = 0; r < count; r++) memcpy(tile + which[r] * TILE, rows + r * TILE, sizeof(REAL) * TILE);
}

/* As saturate in base.py: sizes whose squares and products with weights do not overflow. NaN is kept. */
static void NAME(saturate)(REAL *restrict tile, long n) {
    for (long i = 0; i < n; i++) {
        const REAL x = tile[i] < -MOST ? -MOST : tile[i];
        tile[i] = x > MOST ? MOST : x;
    }
}

/* Apply one layer to one tile (features, TILE), in place. saved: its part of what the tile saves, or NULL. */
static void NAME(apply)(const chain *c, const NAME(stage) * s, long start, long count, REAL *tile, REAL *log_det,
                        REAL *saved, const NAME(scratch) * w) {
    const layer *l = s->l;
    const long features = c->features, points = features * TILE;
    if (!saved && (l->kind == NETWORK || l->kind == LINEAR)) NAME(saturate)(tile, points);
    if (saved && !s->inverse && l->kind != PERMUTE) memcpy(saved, tile, sizeof(REAL) * points);
    switch (l->kind) {
    case PERMUTE:
        memcpy(w->values, tile, sizeof(REAL) * points);
        NAME(pick)(w->values, features, s->inverse ? l->back : l->order, tile);
        break;
    case NORMALIZE:
        for (long r = 0; r < features; r++) {
            REAL *restrict x = tile + r * TILE;
            const REAL shift = s->shift[r], scale = s->scale[r];
            if (s->inverse)
                for (long i = 0; i < TILE; i++) x[i] = x[i] * scale + shift;
            else
                for (long i = 0; i < TILE; i++) x[i] = (x[i] - shift) * scale;
        }
        break;
    case LINEAR: {
        REAL *y = saved ? saved + points : w->values;
        if (!s->inverse) {
            NAME(product)(features, &s->upper, tile, y, 0);
            for (long r = 0; r < features; r++)
                for (long i = 0; i < TILE; i++) y[r * TILE + i] += s->scale[r] * tile[r * TILE + i];
            NAME(product)(features, &s->lower, y, tile, 0);
            for (long r = 0; r < features; r++)
                for (long i = 0; i < TILE; i++) tile[r * TILE + i] += y[r * TILE + i] + s->shift[r];
            break;
        }
        for (long r = 0; r < features; r++) { /* y = L^-1 (z - bias) */
            NAME(product_of)(&(NAME(matrix)){s->lower.start, features, 1, features, NULL, NULL}, r, 1, 0, r, y, w->inputs, 0);
            for (long i = 0; i < TILE; i++) y[r * TILE + i] = tile[r * TILE + i] - s->shift[r] - w->inputs[i];
        }
        for (long r = features - 1; r >= 0; r--) { /* x = U^-1 y */
            NAME(product_of)(&(NAME(matrix)){s->upper.start, features, 1, features, NULL, NULL}, r, 1, r + 1, features, tile,
                             w->inputs, 0);
            for (long i = 0; i < TILE; i++) tile[r * TILE + i] = (y[r * TILE + i] - w->inputs[i]) / s->scale[r];
        }
        break;
    }
    case NETWORK: {
        const NAME(network) *n = &s->network;
        const long hidden = n->hidden, size = hidden * TILE;
        REAL *activations = saved ? saved + points : w->activations;
        REAL *parameters = saved ? activations + (1 + 2 * n->blocks) * size : w->parameters;
        if (s->sequential) {
            for (long b = 0; b <= n->blocks; b++)
                if (n->terms[b])
                    NAME(to_tile)(n->terms[b] + start * hidden, count, hidden, hidden, NULL, w->swap + b * size);
            NAME(solve)(n, l, tile, w->swap, activations, w->h, w->g, parameters, tile, w->log);
        } else if (l->transformed_features) {
            NAME(pick)(tile, l->inputs, l->identity_features, w->inputs);
            NAME(pick)(tile, l->values, l->transformed_features, w->values);
            NAME(evaluate)(n, start, count, w->inputs, activations, w->h, w->g, w->swap, parameters);
            NAME(map_tile)(l, s->inverse, w->values, parameters, w->values, w->log);
            NAME(put)(w->values, l->values, l->transformed_features, tile);
        } else {
            NAME(evaluate)(n, start, count, tile, activations, w->h, w->g, w->swap, parameters);
            NAME(map_tile)(l, s->inverse, tile, parameters, tile, w->log);
        }
        NAME(add)(log_det, TILE, w->log);
    }
    }
    if (saved && s->inverse && l->kind != PERMUTE) memcpy(saved, tile, sizeof(REAL) * points);
}

/* Compute z (points, features) and log_det (points,) from x. If saved is not NULL, what the backward pass needs is
 * written there. */
int NAME(chain_forward)(const chain *c, const REAL *x, REAL *z, REAL *log_det, REAL *saved) {
    NAME(plan) plan;
    if (NAME(open)(c, &plan, open_arena(0))) return 1;
    const long features = c->features, points = features * TILE, tiles = (c->points + TILE - 1) / TILE;
    const long threads = c->threads < tiles ? c->threads : tiles ? tiles : 1, groups = groups_of(tiles, threads);
    int failed = 0;
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1) reduction(| : failed)
    for (long group = 0; group < groups; group++) {
        arena *own = open_arena(1);
        const long begin = group * tiles / groups, end = (group + 1) * tiles / groups, count = end - begin;
        REAL *all_points = take(own, sizeof(REAL) * (points + TILE) * (count ? count : 1));
        NAME(scratch) w;
        NAME(take_scratch)(c, saved != NULL, 0, &w, own);
        if (own->failed) {
            failed = 1;
            continue;
        }
        REAL *logs = all_points + points * count;
        for (long t = begin; t < end; t++) {
            const long start = t * TILE, rows = c->points - start < TILE ? c->points - start : TILE;
            NAME(to_tile)(x + start * features, rows, features, features, NULL, all_points + (t - begin) * points);
        }
        for (long i = 0; i < TILE * count; i++) logs[i] = 0;
        for (long i = 0; i < c->layers; i++)
            for (long t = begin; t < end; t++) {
                const long start = t * TILE, rows = c->points - start < TILE ? c->points - start : TILE;
                NAME(apply)(c, &plan.stages[i], start, rows, all_points + (t - begin) * points, logs + (t - begin) * TILE,
                            saved ? saved + t * plan.saved + plan.stages[i].saved : NULL, &w);
            }
        for (long t = begin; t < end; t++) {
            const long start = t * TILE, rows = c->points - start < TILE ? c->points - start : TILE;
            NAME(from_tile)(all_points + (t - begin) * points, rows, features, features, NULL, z + start * features);
            for (long i = 0; i < rows; i++) log_det[start + i] = logs[(t - begin) * TILE + i] + (REAL)plan.log_det;
        }
    }
    return failed;
}

/* Gradients of LINEAR on one tile. With g the gradient of its result and gy that of U x (forwards): the gradient of L
 * is g y^T, that of U is gy x^T. The inverse has both with the other sign. */
static void NAME(linear_backward)(const chain *c, const NAME(stage) * s, const REAL *saved, REAL *g, const NAME(scratch) * w,
                                  REAL *sums, int accumulate) {
    const long features = c->features, points = features * TILE, ld = NAME(padded)(features);
    const REAL *x = saved, *y = saved + points;
    REAL *gy = w->g_inputs, *line = w->g_values;
    if (s->inverse) {
        for (long r = 0; r < features; r++) { /* gy = U^-T gx */
            NAME(product_of)(&(NAME(matrix)){s->upper.start, 1, features, features, NULL, NULL}, r, 1, 0, r, gy, line, 0);
            for (long i = 0; i < TILE; i++) gy[r * TILE + i] = (g[r * TILE + i] - line[i]) / s->scale[r];
        }
        for (long r = features - 1; r >= 0; r--) { /* gz = L^-T gy */
            NAME(product_of)(&(NAME(matrix)){s->lower.start, 1, features, features, NULL, NULL}, r, 1, r + 1, features, g,
                             line, 0);
            for (long i = 0; i < TILE; i++) g[r * TILE + i] = gy[r * TILE + i] - line[i];
        }
    } else {
        NAME(product)(features, &s->lower_t, g, gy, 0);
        NAME(add)(gy, points, g);
    }
    if (sums) {
        REAL *g_lower = sums + s->sums, *g_upper = g_lower + features * ld, *rest = g_upper + features * ld;
        NAME(transpose_tile)(y, features, w->x_t);
        NAME(outer)(features, features, s->lower.to, g, w->x_t, ld, g_lower, accumulate);
        NAME(transpose_tile)(x, features, w->x_t);
        NAME(outer)(features, features, NULL, gy, w->x_t, ld, g_upper, accumulate);
        NAME(sum_of_products)(gy, x, features, rest, accumulate);
        NAME(sum_of_rows)(g, features, rest + features, accumulate);
    }
    if (s->inverse) return;
    NAME(product)(features, &s->upper_t, gy, g, 0);
    for (long r = 0; r < features; r++)
        for (long i = 0; i < TILE; i++) g[r * TILE + i] += s->scale[r] * gy[r * TILE + i];
}

/* Backward pass of one layer on one tile: g (features, TILE) holds the gradient of its result on entry and that of its
 * input on return; the gradients of its tensors are added to sums, unless it is NULL. */
static void NAME(apply_backward)(const chain *c, const NAME(stage) * s, long start, long count, const REAL *saved, REAL *g,
                                 const REAL *g_log, const NAME(scratch) * w, REAL *sums, int accumulate) {
    const layer *l = s->l;
    const long features = c->features, points = features * TILE;
    switch (l->kind) {
    case PERMUTE:
        memcpy(w->g_values, g, sizeof(REAL) * points);
        NAME(pick)(w->g_values, features, s->inverse ? l->order : l->back, g);
        break;
    case NORMALIZE:
        for (long r = 0; r < features; r++) {
            REAL *restrict row = g + r * TILE;
            REAL *restrict centred = w->values + r * TILE;
            const REAL *restrict x = saved + r * TILE;
            const REAL shift = s->shift[r], scale = s->scale[r];
            for (long i = 0; i < TILE; i++) centred[i] = x[i] - shift;
            if (!s->inverse)
                for (long i = 0; i < TILE; i++) row[i] *= scale;
        }
        if (sums) {
            REAL *g_shift = sums + s->sums;
            NAME(sum_of_rows)(g, features, g_shift, accumulate);
            NAME(sum_of_products)(g, w->values, features, g_shift + features, accumulate);
        }
        if (s->inverse)
            for (long r = 0; r < features; r++)
                for (long i = 0; i < TILE; i++) g[r * TILE + i] *= s->scale[r];
        break;
    case LINEAR: NAME(linear_backward)(c, s, saved, g, w, sums, accumulate); break;
    case NETWORK: {
        const NAME(network) *n = &s->network;
        const long size = n->hidden * TILE;
        const REAL *x = saved, *activations = saved + points, *parameters = activations + (1 + 2 * n->blocks) * size;
        if (s->sequential) {
            NAME(solve_backward)(n, l, x, activations, parameters, g_log, g, w->g_parameters, w->dh, w->dg);
            if (sums) NAME(solve_gradients)(n, start, count, x, activations, w->g_parameters, w->dh, w->dg, w->x_t, sums, accumulate);
            break;
        }
        const REAL *inputs = x, *values = x;
        REAL *gv = g;
        if (l->transformed_features) {
            NAME(pick)(x, l->inputs, l->identity_features, w->inputs), inputs = w->inputs;
            NAME(pick)(x, l->values, l->transformed_features, w->values), values = w->values;
            NAME(pick)(g, l->values, l->transformed_features, w->g_values), gv = w->g_values;
        }
        for (long d = 0; d < l->values; d++)
            for (long i = 0; i < TILE; i += VD) {
                const long at = d * TILE + i, p = d * l->size * TILE + i;
                STORE(gv + at, NAME(backward_1)(parameters + p, LOAD(values + at), LOAD(gv + at), LOAD(g_log + i), &l->map,
                                                s->inverse, w->g_parameters + p));
            }
        NAME(evaluate_backward)(n, start, count, inputs, activations, w->g_parameters, w->dh, w->dg, w->x_t, w->swap, sums,
                                accumulate, w->g_inputs);
        if (l->transformed_features) {
            NAME(put)(gv, l->values, l->transformed_features, g);
            for (long r = 0; r < l->inputs; r++)
                NAME(add)(g + l->identity_features[r] * TILE, TILE, w->g_inputs + r * TILE);
        } else NAME(add)(g, points, w->g_inputs);
    }
    }
}

/* Write the gradients of a layer's tensors from the sums of all threads; total: sum of the gradients of log_det. */
static void NAME(write_gradients)(const chain *c, const NAME(stage) * s, const REAL *sums, long threads, long stride,
                                  REAL total) {
    const layer *l = s->l;
    const long features = c->features, ld = NAME(padded)(features);
    REAL *const *g = (REAL *const *)c->g_tensors + l->first;
    if (l->kind == NETWORK) {
        const NAME(network) *n = &s->network;
        NAME(write_gradient)(&n->first, sums, threads, stride, c->g_tensors);
        for (long b = 0; b < n->blocks; b++) {
            NAME(write_gradient)(&n->one[b], sums, threads, stride, c->g_tensors);
            NAME(write_gradient)(&n->two[b], sums, threads, stride, c->g_tensors);
        }
        NAME(write_gradient)(&n->last, sums, threads, stride, c->g_tensors);
    } else if (l->kind == NORMALIZE || l->kind == LINEAR) {
#pragma omp for schedule(static) nowait
        for (long r = 0; r < features; r++) {
            /* The derivative of log_det by every logarithm of a scale. */
            REAL logs = (l->kind == NORMALIZE) != s->inverse ? -total : total, shift = 0;
            if (l->kind == LINEAR) memset(g[0] + r * features, 0, sizeof(REAL) * features);
            if (l->kind == LINEAR) memset(g[1] + r * features, 0, sizeof(REAL) * features);
            const REAL sign = s->inverse ? -1 : 1;
            for (long t = 0; t < threads; t++) {
                const REAL *own = sums + t * stride + s->sums;
                if (l->kind == NORMALIZE) {
                    shift += (s->inverse ? 1 : -1) * own[r], logs += (s->inverse ? 1 : -1) * own[features + r];
                    continue;
                }
                const REAL *lower = own + r * ld, *upper = own + (features + r) * ld, *rest = own + 2 * features * ld;
                for (long k = 0; k < r; k++) g[0][r * features + k] += sign * lower[k];
                for (long k = r + 1; k < features; k++) g[1][r * features + k] += sign * upper[k];
                logs += sign * s->scale[r] * rest[r], shift += sign * rest[features + r];
            }
            if (l->kind == NORMALIZE) g[0][r] = shift, g[1][r] = logs;
            else g[2][r] = logs, g[3][r] = shift;
        }
    }
}

/* Gradient gx of gz . z + gl . log_det, from what chain_forward saved, and those of all tensors unless c->g_tensors is
 * NULL, which saves half of the products. Both directions save the same, so that one may be differentiated after the
 * other was evaluated. */
int NAME(chain_backward)(const chain *c, const REAL *gz, const REAL *gl, const REAL *saved, REAL *gx) {
    NAME(plan) plan;
    arena *shared = open_arena(0);
    if (NAME(open)(c, &plan, shared)) return 1;
    const long features = c->features, points = features * TILE, tiles = (c->points + TILE - 1) / TILE;
    const long threads = c->threads < tiles ? c->threads : tiles ? tiles : 1, groups = groups_of(tiles, threads);
    const long stride = (plan.sums + 63) / 64 * 64;
    REAL *all_sums = c->g_tensors ? take(shared, sizeof(REAL) * stride * threads) : NULL;
    if (shared->failed) return 1;
    double total = 0.0; /* in a fixed order, whatever the number of threads */
    for (long i = 0; i < c->points; i++) total += gl[i];
    int failed = 0;
#pragma omp parallel num_threads(threads) if (threads > 1) reduction(| : failed)
    {
        REAL *sums = all_sums ? all_sums + MEMBER * stride : NULL;
        int is_first = 1; /* a thread's first tiles write their sums, later ones add to them */
        if (sums && !tiles) memset(sums, 0, sizeof(REAL) * stride);
#pragma omp for schedule(static)
        for (long group = 0; group < groups; group++) {
            arena *own = open_arena(1);
            const long begin = group * tiles / groups, end = (group + 1) * tiles / groups, count = end - begin;
            REAL *all_g = take(own, sizeof(REAL) * (points + TILE) * (count ? count : 1));
            NAME(scratch) w;
            NAME(take_scratch)(c, 1, 1, &w, own);
            if (own->failed) {
                failed = 1;
                continue;
            }
            REAL *logs = all_g + points * count;
            for (long t = begin; t < end; t++) {
                const long start = t * TILE, rows = c->points - start < TILE ? c->points - start : TILE;
                NAME(to_tile)(gz + start * features, rows, features, features, NULL, all_g + (t - begin) * points);
                NAME(to_tile)(gl + start, rows, 1, 1, NULL, logs + (t - begin) * TILE);
            }
            for (long i = c->layers - 1; i >= 0; i--)
                for (long t = begin; t < end; t++) {
                    const long start = t * TILE, rows = c->points - start < TILE ? c->points - start : TILE;
                    NAME(apply_backward)(c, &plan.stages[i], start, rows, saved + t * plan.saved + plan.stages[i].saved,
                                         all_g + (t - begin) * points, logs + (t - begin) * TILE, &w, sums,
                                         !is_first || t > begin);
                }
            is_first = 0;
            for (long t = begin; t < end; t++) {
                const long start = t * TILE, rows = c->points - start < TILE ? c->points - start : TILE;
                NAME(from_tile)(all_g + (t - begin) * points, rows, features, features, NULL, gx + start * features);
            }
        }
        /* All threads have finished the loop, so their sums can be added up. */
        if (sums && !failed)
            for (long i = 0; i < c->layers; i++)
                NAME(write_gradients)(c, &plan.stages[i], all_sums, MEMBERS, stride, (REAL)total);
    }
    return failed;
}

/* A network alone: parameters (points, outputs) from x (points, inputs). */
int NAME(network_forward)(const chain *c, const REAL *x, REAL *parameters, REAL *saved) {
    const layer *l = c->layer;
    NAME(network) n;
    long sums = 0;
    arena *shared = open_arena(0);
    NAME(open_network)(l, c->tensors, NULL, &n, &sums, shared);
    if (shared->failed) return 1;
    const long size = n.hidden * TILE, kept = (1 + 2 * n.blocks) * size, tiles = (c->points + TILE - 1) / TILE;
    int failed = 0;
#pragma omp parallel for schedule(static) num_threads(c->threads) if (c->threads > 1 && tiles > 1) reduction(| : failed)
    for (long tile = 0; tile < tiles; tile++) {
        arena *own = open_arena(1);
        const long start = tile * TILE, count = c->points - start < TILE ? c->points - start : TILE;
        REAL *inputs = take(own, sizeof(REAL) * n.inputs * TILE), *out = take(own, sizeof(REAL) * n.outputs * TILE);
        REAL *h = take(own, sizeof(REAL) * size), *g = take(own, sizeof(REAL) * size), *swap = take(own, sizeof(REAL) * size);
        REAL *activations = saved ? saved + tile * kept : take(own, sizeof(REAL) * kept);
        if (own->failed) {
            failed = 1;
            continue;
        }
        NAME(to_tile)(x + start * n.inputs, count, n.inputs, n.inputs, NULL, inputs);
        NAME(evaluate)(&n, start, count, inputs, activations, h, g, swap, out);
        NAME(from_tile)(out, count, n.outputs, n.outputs, NULL, parameters + start * n.outputs);
    }
    return failed;
}

/* Gradients of a network alone, from that of its parameters. */
int NAME(network_backward)(const chain *c, const REAL *x, const REAL *g_parameters, const REAL *saved, REAL *gx) {
    const layer *l = c->layer;
    NAME(network) n;
    long length = 0;
    arena *shared = open_arena(0);
    NAME(open_network)(l, c->tensors, c->g_tensors, &n, &length, shared);
    const long size = n.hidden * TILE, kept = (1 + 2 * n.blocks) * size, tiles = (c->points + TILE - 1) / TILE;
    const long threads = c->threads < tiles ? c->threads : tiles ? tiles : 1, stride = (length + 63) / 64 * 64;
    const long widest = NAME(padded)(n.inputs > n.hidden ? n.inputs : n.hidden);
    REAL *all_sums = c->g_tensors ? take(shared, sizeof(REAL) * stride * threads) : NULL;
    if (shared->failed) return 1;
    int failed = 0;
#pragma omp parallel num_threads(threads) if (threads > 1) reduction(| : failed)
    {
        REAL *sums = all_sums ? all_sums + MEMBER * stride : NULL;
        int is_first = 1; /* a thread's first tiles write their sums, later ones add to them */
        if (sums && !tiles) memset(sums, 0, sizeof(REAL) * stride);
#pragma omp for schedule(static)
        for (long tile = 0; tile < tiles; tile++) {
            arena *own = open_arena(1);
            const long start = tile * TILE, count = c->points - start < TILE ? c->points - start : TILE;
            REAL *inputs = take(own, sizeof(REAL) * n.inputs * TILE), *g_inputs = take(own, sizeof(REAL) * n.inputs * TILE);
            REAL *dh = take(own, sizeof(REAL) * size), *dg = take(own, sizeof(REAL) * size);
            REAL *swap = take(own, sizeof(REAL) * size), *x_t = take(own, sizeof(REAL) * widest * TILE);
            REAL *gp = take(own, sizeof(REAL) * n.outputs * TILE);
            if (own->failed) {
                failed = 1;
                continue;
            }
            NAME(to_tile)(x + start * n.inputs, count, n.inputs, n.inputs, NULL, inputs);
            NAME(to_tile)(g_parameters + start * n.outputs, count, n.outputs, n.outputs, NULL, gp);
            NAME(evaluate_backward)(&n, start, count, inputs, saved + tile * kept, gp, dh, dg, x_t, swap, sums, !is_first, g_inputs);
            is_first = 0;
            NAME(from_tile)(g_inputs, count, n.inputs, n.inputs, NULL, gx + start * n.inputs);
        }
        if (sums && !failed) {
            NAME(write_gradient)(&n.first, all_sums, MEMBERS, stride, c->g_tensors);
            for (long b = 0; b < n.blocks; b++) {
                NAME(write_gradient)(&n.one[b], all_sums, MEMBERS, stride, c->g_tensors);
                NAME(write_gradient)(&n.two[b], all_sums, MEMBERS, stride, c->g_tensors);
            }
            NAME(write_gradient)(&n.last, all_sums, MEMBERS, stride, c->g_tensors);
        }
    }
    return failed;
}
