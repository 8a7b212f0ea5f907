/* Univariate maps without a network: values (points,) with parameters (points, size).
 *
 * Included once for each type of tensor.
 */

int NAME(map_forward)(const chain *c, const REAL *values, const REAL *parameters, REAL *z, REAL *log_derivative) {
    const long tiles = (c->points + TILE - 1) / TILE;
    int failed = 0;
#pragma omp parallel for schedule(static) num_threads(c->threads) if (c->threads > 1 && tiles > 8) reduction(| : failed)
    for (long tile = 0; tile < tiles; tile++) {
        arena *own = open_arena(1);
        const long start = tile * TILE, count = c->points - start < TILE ? c->points - start : TILE;
        REAL *p = take(own, sizeof(REAL) * c->layer->size * TILE), *v = take(own, sizeof(REAL) * TILE);
        REAL *out = take(own, sizeof(REAL) * TILE), *log_out = take(own, sizeof(REAL) * TILE);
        if (own->failed) {
            failed = 1;
            continue;
        }
        NAME(to_tile)(values + start, count, 1, 1, NULL, v);
        NAME(to_tile)(parameters + start * c->layer->size, count, c->layer->size, c->layer->size, NULL, p);
        NAME(map_tile)(c->layer, c->inverse, v, p, out, log_out);
        NAME(from_tile)(out, count, 1, 1, NULL, z + start);
        NAME(from_tile)(log_out, count, 1, 1, NULL, log_derivative + start);
    }
    return failed;
}

int NAME(map_backward)(const chain *c, const REAL *values, const REAL *parameters, const REAL *gz, const REAL *gl,
                       REAL *g_values, REAL *g_parameters) {
    const long tiles = (c->points + TILE - 1) / TILE;
    int failed = 0;
#pragma omp parallel for schedule(static) num_threads(c->threads) if (c->threads > 1 && tiles > 8) reduction(| : failed)
    for (long tile = 0; tile < tiles; tile++) {
        arena *own = open_arena(1);
        const long start = tile * TILE, count = c->points - start < TILE ? c->points - start : TILE;
        REAL *p = take(own, sizeof(REAL) * c->layer->size * TILE), *gp = take(own, sizeof(REAL) * c->layer->size * TILE);
        REAL *v = take(own, sizeof(REAL) * TILE), *g = take(own, sizeof(REAL) * TILE);
        REAL *g_log = take(own, sizeof(REAL) * TILE);
        if (own->failed) {
            failed = 1;
            continue;
        }
        NAME(to_tile)(values + start, count, 1, 1, NULL, v);
        NAME(to_tile)(parameters + start * c->layer->size, count, c->layer->size, c->layer->size, NULL, p);
        NAME(to_tile)(gz + start, count, 1, 1, NULL, g);
        NAME(to_tile)(gl + start, count, 1, 1, NULL, g_log);
        for (long i = 0; i < TILE; i += VD)
            STORE(g + i, NAME(backward_1)(p + i, LOAD(v + i), LOAD(g + i), LOAD(g_log + i), &c->layer->map, c->inverse, gp + i));
        NAME(from_tile)(g, count, 1, 1, NULL, g_values + start);
        NAME(from_tile)(gp, count, c->layer->size, c->layer->size, NULL, g_parameters + start * c->layer->size);
    }
    return failed;
}
