/* The univariate maps on one vector of points, in both directions, and their gradients.
 *
 * Included once for each type of tensor. The parameters of a map lie TILE apart, the points of a tile side by side.
 * Formulas and symbols are those of rational_quadratic.py and affine.py.
 */

typedef struct {
    vd x0, width, y0, height, d0, d1;       /* the bin: left knot, width, lower knot, height, slopes at both knots */
    vd share_x, share_y, upto_x, upto_y;    /* softmax of the bin, and its sum over all bins before */
    vd slope0, slope1;                      /* derivatives of the slopes with respect to their raw parameters */
    vl number;                              /* number of the bin */
    vd largest_x, largest_y, total_x, total_y;
} NAME(bin);

/* Find the bin of v: by the widths, or with of_heights by the heights. */
INLINE void NAME(find)(const REAL *p, vd v, const map *m, int of_heights, NAME(bin) * b) {
    const long bins = m->bins;
    const double least = 2.0 * m->bound * LEAST, rest = 2.0 * m->bound * (1.0 - LEAST * (double)bins);
    /* ends: 1 if the parameters begin with the slope at the left end; inner: number of the knot of the first slope. */
    const long ends = m->learned != 0, inner = 1 - ends;
    const REAL *px = p, *py = p + bins * TILE, *pd = p + 2 * bins * TILE;
    vd ex[bins], ey[bins];
    vd mx = LOAD(px), my = LOAD(py);
    for (long k = 1; k < bins; k++) {
        mx = larger(mx, LOAD(px + k * TILE));
        my = larger(my, LOAD(py + k * TILE));
    }
    vd sx = all(0.0), sy = all(0.0);
    for (long k = 0; k < bins; k++) {
        ex[k] = exponential(LOAD(px + k * TILE) - mx);
        ey[k] = exponential(LOAD(py + k * TILE) - my);
        sx += ex[k];
        sy += ey[k];
    }
    b->largest_x = mx, b->largest_y = my, b->total_x = sx, b->total_y = sy;
    vd scale_x = rest / sx, scale_y = rest / sy;
    vd cx = all(0.0), cy = all(0.0); /* sums of the weights before bin k */
    vd raw0 = all(0.0), raw1 = all(0.0);
    vd wx = cx, wy = cy, fx = cx, fy = cy;
    vl number = (vl)all(0.0);
    for (long k = 0; k < bins; k++) {
        vd knot = of_heights ? cy * scale_y : cx * scale_x;
        vl reached = v >= knot + (least * (double)k - m->bound);
        if (k == 0) reached = ~(vl)all(0.0); /* every point has a bin, also NaN */
        wx = choose(reached, ex[k], wx), wy = choose(reached, ey[k], wy);
        fx = choose(reached, cx, fx), fy = choose(reached, cy, fy);
        raw0 = k >= inner ? choose(reached, LOAD(pd + (k - inner) * TILE), raw0) : raw0;
        raw1 = k + inner < bins ? choose(reached, LOAD(pd + (k + ends) * TILE), raw1) : raw1;
        number = (reached & k) | (~reached & number);
        cx += ex[k];
        cy += ey[k];
    }
    b->number = number;
    vd position = __builtin_convertvector(number, vd);
    b->share_x = wx / sx, b->share_y = wy / sy, b->upto_x = fx / sx, b->upto_y = fy / sy;
    b->width = wx * scale_x + least, b->height = wy * scale_y + least;
    b->x0 = fx * scale_x + (least * position - m->bound);
    b->y0 = fy * scale_y + (least * position - m->bound);
    /* The outermost slopes are one unless they are learned; then no bin has these two numbers. */
    vl first = number == -ends, last = number == bins - inner;
    vd d0 = softplus(raw0 + SLOPE_AT_ZERO, &b->slope0) + LEAST, d1 = softplus(raw1 + SLOPE_AT_ZERO, &b->slope1) + LEAST;
    b->d0 = choose(first, all(1.0), d0), b->d1 = choose(last, all(1.0), d1);
    b->slope0 = choose(first, all(0.0), b->slope0), b->slope1 = choose(last, all(0.0), b->slope1);
}

INLINE vl NAME(is_inside)(vd v, const map *m) { return (v > -m->bound) & (v < m->bound); }

/* Start and slope of the line outside; b is the bin of the clamped value, so the first or the last one. */
INLINE vd NAME(end)(vd v, const map *m) { return choose(v < 0.0, all(-m->bound), all(m->bound)); }
INLINE vd NAME(end_slope)(vd v, const NAME(bin) * b, const map *m) {
    return m->learned ? choose(v < 0.0, b->d0, b->d1) : all(1.0);
}

/* Clamp to the interval; NaN becomes an end of it, and the later choice between inside and outside restores it. */
INLINE vd NAME(clamped)(vd v, const map *m) {
    return choose(v > -m->bound, choose(v < m->bound, v, all(m->bound)), all(-m->bound));
}

SEPARATE void NAME(spline_forward)(const REAL *p, vd x, const map *m, vd *z, vd *log_derivative) {
    NAME(bin) b;
    vd v = NAME(clamped)(x, m);
    NAME(find)(p, v, m, 0, &b);
    vd t = at_most(at_least((v - b.x0) / b.width, 0.0), 1.0);
    vd s = 1.0 - t, ts = t * s, slope = b.height / b.width;
    vd denominator = slope + (b.d0 + b.d1 - 2.0 * slope) * ts;
    vd combination = b.d1 * t * t + 2.0 * slope * ts + b.d0 * s * s;
    vd ratio = slope / denominator;
    vl inside = NAME(is_inside)(x, m);
    vd outer = NAME(end_slope)(x, &b, m), end = NAME(end)(x, m), line = m->learned ? end + outer * (x - end) : x;
    *z = choose(inside, b.y0 + b.height * (slope * t * t + b.d0 * ts) / denominator, line);
    *log_derivative = logarithm(choose(inside, combination * ratio * ratio, outer));
}

SEPARATE void NAME(spline_inverse)(const REAL *p, vd z, const map *m, vd *x, vd *log_derivative) {
    NAME(bin) b;
    vd v = NAME(clamped)(z, m);
    NAME(find)(p, v, m, 1, &b);
    vd slope = b.height / b.width, curve = b.d0 + b.d1 - 2.0 * slope;
    vd r = at_most(at_least((v - b.y0) / b.height, 0.0), 1.0);
    vd a2 = slope - b.d0 + r * curve, a1 = b.d0 - r * curve, difference = b.d1 * r - b.d0 * (1.0 - r);
    vd square_root = root(difference * difference + 4.0 * slope * slope * r * (1.0 - r));
    vl positive = a1 >= 0.0;
    vd numerator = choose(positive, 2.0 * slope * r, square_root - a1);
    vd t = at_most(at_least(numerator / choose(positive, a1 + square_root, 2.0 * a2), 0.0), 1.0);
    vd s = 1.0 - t, ts = t * s;
    vd denominator = slope + curve * ts;
    vd combination = b.d1 * t * t + 2.0 * slope * ts + b.d0 * s * s;
    vd ratio = slope / denominator;
    vl inside = NAME(is_inside)(z, m);
    vd outer = NAME(end_slope)(z, &b, m), end = NAME(end)(z, m), line = m->learned ? end + (z - end) / outer : z;
    *x = choose(inside, b.x0 + t * b.width, line);
    *log_derivative = -logarithm(choose(inside, combination * ratio * ratio, outer));
}

/* Gradients at x of gz z + gl log_derivative, with respect to x (returned) and to the parameters (written to gp).
 *
 * With inverted, the map is the inverse, x is its result, and gz, gl are the gradients of x and of the inverse's
 * log-derivative. The implicit function theorem turns them into cotangents of the forward map, and the gradient
 * returned is that of z. */
SEPARATE vd NAME(spline_backward)(const REAL *p, vd x, vd gz, vd gl, const map *m, int inverted, REAL *gp) {
    const long bins = m->bins;
    NAME(bin) b;
    vd v = NAME(clamped)(x, m);
    NAME(find)(p, v, m, 0, &b);
    vd inverse_width = 1.0 / b.width, slope = b.height * inverse_width;
    vd t = at_most(at_least((v - b.x0) * inverse_width, 0.0), 1.0);
    vd s = 1.0 - t, q = t * s, curve = b.d0 + b.d1 - 2.0 * slope;
    vd over_denominator = 1.0 / (slope + curve * q);
    vd combination = b.d1 * t * t + 2.0 * slope * q + b.d0 * s * s, over_combination = 1.0 / combination;
    vd rho = (slope * t * t + b.d0 * q) * over_denominator;
    vd rho_t = slope * combination * over_denominator * over_denominator;
    vd log_t = 2.0 * (b.d1 * t + slope * (1.0 - 2.0 * t) - b.d0 * s) * over_combination -
               2.0 * curve * (1.0 - 2.0 * t) * over_denominator;
    vl inside = NAME(is_inside)(x, m);
    vd outer = NAME(end_slope)(x, &b, m);
    if (inverted) {
        /* dx = (dz - f_p dp) / f', d(-log f') = -(log_x dx + log_p dp). */
        vd total = choose(inside, gz - gl * log_t * inverse_width, gz);
        gz = -total / choose(inside, slope * rho_t, outer), gl = -gl;
    }
    vd plain = gz, gouter = all(0.0); /* gouter: gradient of the slope of the line outside */
    if (m->learned) gouter = choose(inside, gouter, gz * (x - NAME(end)(x, m)) + gl / outer);
    gz = choose(inside, gz, all(0.0)), gl = choose(inside, gl, all(0.0));
    vd gz_height = gz * b.height;
    vd gt = gz_height * rho_t + gl * log_t;
    vd gs = gz_height * (t * t - rho * (1.0 - 2.0 * q)) * over_denominator +
            gl * 2.0 * (q * over_combination + 1.0 / slope - (1.0 - 2.0 * q) * over_denominator);
    vd both = q * over_denominator;
    vd gd0 = gz_height * both * (1.0 - rho) + gl * (s * s * over_combination - 2.0 * both);
    vd gd1 = -gz_height * both * rho + gl * (t * t * over_combination - 2.0 * both);
    vd gx0 = -gt * inverse_width, gw = gx0 * t - gs * slope * inverse_width;
    vd gh = gz * rho + gs * inverse_width, gy0 = gz;
    vd result = choose(inside, -gx0, plain * outer);
    gd0 += choose(x < 0.0, gouter, all(0.0)), gd1 += choose(x < 0.0, all(0.0), gouter);
    /* Backward through the softmax: the bins before this one determine its knot, the bin itself its size. */
    const double rest = 2.0 * m->bound * (1.0 - LEAST * (double)bins);
    vd mean_x = gx0 * b.upto_x + gw * b.share_x, mean_y = gy0 * b.upto_y + gh * b.share_y;
    vd scale_x = rest / b.total_x, scale_y = rest / b.total_y;
    REAL *gpx = gp, *gpy = gp + bins * TILE, *gpd = gp + 2 * bins * TILE;
    const REAL *px = p, *py = p + bins * TILE;
    gd0 *= b.slope0, gd1 *= b.slope1;
    for (long k = 0; k < bins; k++) {
        vl before = b.number > k, here = b.number == k;
        vd ex = exponential(LOAD(px + k * TILE) - b.largest_x), ey = exponential(LOAD(py + k * TILE) - b.largest_y);
        vd ax = choose(before, gx0, choose(here, gw, all(0.0))), ay = choose(before, gy0, choose(here, gh, all(0.0)));
        STORE(gpx + k * TILE, ex * scale_x * (ax - mean_x));
        STORE(gpy + k * TILE, ey * scale_y * (ay - mean_y));
    }
    /* The slope at a knot belongs to the bins on both sides of it; fixed slopes at the ends have no gradient. */
    for (long knot = m->learned ? 0 : 1, last = bins - knot; knot <= last; knot++, gpd += TILE)
        STORE(gpd, choose(b.number == knot - 1, gd1, choose(b.number == knot, gd0, all(0.0))));
    return inverted ? -plain : result;
}

/* Affine: z = e^s x + t, s = S tanh(a / S). */
INLINE vd NAME(log_scale)(const REAL *p, const map *m, vd *derivative) {
    /* tanh u = sign(u) (1 - e^(-2|u|)) / (1 + e^(-2|u|)) */
    vd u = LOAD(p + TILE) / m->bound;
    vd e = exponential(-2.0 * absolute(u));
    vd tanh = (1.0 - e) / (1.0 + e);
    tanh = choose(u < 0.0, -tanh, tanh);
    *derivative = 1.0 - tanh * tanh;
    return m->bound * tanh;
}

INLINE void NAME(affine_forward)(const REAL *p, vd x, const map *m, vd *z, vd *log_derivative) {
    vd unused, s = NAME(log_scale)(p, m, &unused);
    *z = x * exponential(s) + LOAD(p);
    *log_derivative = s;
}

INLINE void NAME(affine_inverse)(const REAL *p, vd z, const map *m, vd *x, vd *log_derivative) {
    vd unused, s = NAME(log_scale)(p, m, &unused);
    *x = (z - LOAD(p)) * exponential(-s);
    *log_derivative = -s;
}

INLINE vd NAME(affine_backward)(const REAL *p, vd x, vd gz, vd gl, const map *m, int inverted, REAL *gp) {
    vd derivative, s = NAME(log_scale)(p, m, &derivative), scale = exponential(s);
    if (inverted) gz = -gz / scale, gl = -gl;
    STORE(gp, gz);
    STORE(gp + TILE, (gz * x * scale + gl) * derivative);
    return inverted ? -gz : gz * scale;
}

INLINE void NAME(forward_1)(const REAL *p, vd x, const map *m, vd *z, vd *log_derivative) {
    switch (m->kind) {
    case SPLINE: NAME(spline_forward)(p, x, m, z, log_derivative); break;
    case MIXTURE: NAME(mixture_forward)(p, x, m, z, log_derivative); break;
    default: NAME(affine_forward)(p, x, m, z, log_derivative);
    }
}

INLINE void NAME(inverse_1)(const REAL *p, vd z, const map *m, vd *x, vd *log_derivative) {
    switch (m->kind) {
    case SPLINE: NAME(spline_inverse)(p, z, m, x, log_derivative); break;
    case MIXTURE: NAME(mixture_draw)(p, z, m, x, log_derivative); break;
    default: NAME(affine_inverse)(p, z, m, x, log_derivative);
    }
}

INLINE vd NAME(backward_1)(const REAL *p, vd x, vd gz, vd gl, const map *m, int inverted, REAL *gp) {
    switch (m->kind) {
    case SPLINE: return NAME(spline_backward)(p, x, gz, gl, m, inverted, gp);
    case MIXTURE: return NAME(mixture_backward)(p, x, gz, gl, m, gp);
    default: return NAME(affine_backward)(p, x, gz, gl, m, inverted, gp);
    }
}
