/* A mixture of Gaussians on one vector of points, a conditional of an autoregressive distribution. It has the interface
 * of a univariate map: its log-density takes the place of the log-derivative, and the value itself is unchanged.
 *
 * Included once for each type of tensor. The parameters of a point lie TILE apart: the logits of all components, their
 * locations, and the logarithms of their scales minus the smallest scale. Formulas and symbols are those of
 * made_mog.py.
 */
#define LOG_ROOT_2PI 0.91893853320467274178
#define MOST_LOG_SCALE 30.0

INLINE vd NAME(component_scale)(const REAL *raw, const map *m, vd *derivative) {
    vd given = LOAD(raw), scale = exponential(at_most(given, MOST_LOG_SCALE));
    *derivative = choose(given > MOST_LOG_SCALE, all(0.0), scale);
    return scale + m->bound;
}

/* Logarithm of each component's weight times its density, without the constants common to all components; the largest
 * of these, and the largest logit. */
INLINE void NAME(mixture_joint)(const REAL *p, vd x, const map *m, vd *joint, vd *largest, vd *largest_logit) {
    const long count = m->bins;
    vd most = all(-1e300), most_logit = LOAD(p), unused;
    for (long k = 0; k < count; k++) {
        vd logit = LOAD(p + k * TILE), scale = NAME(component_scale)(p + (2 * count + k) * TILE, m, &unused);
        vd u = (x - LOAD(p + (count + k) * TILE)) / scale;
        joint[k] = logit - 0.5 * u * u - logarithm(scale);
        most = larger(most, joint[k]);
        most_logit = larger(most_logit, logit);
    }
    *largest = most, *largest_logit = most_logit;
}

SEPARATE void NAME(mixture_forward)(const REAL *p, vd x, const map *m, vd *z, vd *log_density) {
    const long count = m->bins;
    vd joint[count], most, most_logit;
    NAME(mixture_joint)(p, x, m, joint, &most, &most_logit);
    vd sum = all(0.0), weights = all(0.0);
    for (long k = 0; k < count; k++) {
        sum += exponential(joint[k] - most);
        weights += exponential(LOAD(p + k * TILE) - most_logit);
    }
    *z = x;
    *log_density = most + logarithm(sum) - most_logit - logarithm(weights) - LOG_ROOT_2PI;
}

/* Gradients of gz x + gl log_density, with respect to x (returned) and to the parameters (written to gp). */
SEPARATE vd NAME(mixture_backward)(const REAL *p, vd x, vd gz, vd gl, const map *m, REAL *gp) {
    const long count = m->bins;
    vd joint[count], weight[count], most, most_logit;
    NAME(mixture_joint)(p, x, m, joint, &most, &most_logit);
    vd sum = all(0.0), weights = all(0.0);
    for (long k = 0; k < count; k++) {
        joint[k] = exponential(joint[k] - most), sum += joint[k];
        weight[k] = exponential(LOAD(p + k * TILE) - most_logit), weights += weight[k];
    }
    vd share = gl / sum, weight_share = gl / weights;
    for (long k = 0; k < count; k++) {
        vd derivative, over = 1.0 / NAME(component_scale)(p + (2 * count + k) * TILE, m, &derivative);
        vd u = (x - LOAD(p + (count + k) * TILE)) * over;
        vd responsible = joint[k] * share, pull = responsible * u * over;
        STORE(gp + k * TILE, responsible - weight[k] * weight_share);
        STORE(gp + (count + k) * TILE, pull);
        STORE(gp + (2 * count + k) * TILE, responsible * (u * u - 1.0) * over * derivative);
        gz -= pull;
    }
    return gz;
}

/* The standard normal quantile: Wichura's PPND16 (1988, algorithm AS 241), relative error about 1e-16. */
SEPARATE vd NAME(normal_quantile)(vd p) {
    vd q = p - 0.5, r = 0.180625 - q * q;
    vd above = (((((((2509.0809287301226727 * r + 33430.575583588128105) * r + 67265.770927008700853) * r +
                    45921.953931549871457) * r + 13731.693765509461125) * r + 1971.5909503065514427) * r +
                 133.14166789178437745) * r + 3.387132872796366608);
    vd below = (((((((5226.495278852545925 * r + 28729.085735721942674) * r + 39307.89580009271061) * r +
                    21213.794301586595867) * r + 5394.1960214247511077) * r + 687.1870074920579083) * r +
                 42.313330701600911252) * r + 1.0);
    vd central = q * above / below;
    vd tail = root(-logarithm(choose(q < 0.0, p, 1.0 - p)));
    r = tail - 1.6;
    above = (((((((7.7454501427834140764e-4 * r + 0.0227238449892691845833) * r + 0.24178072517745061177) * r +
                 1.27045825245236838258) * r + 3.64784832476320460504) * r + 5.7694972214606914055) * r +
              4.6303378461565452959) * r + 1.42343711074968357734);
    below = (((((((1.05075007164441684324e-9 * r + 5.475938084995344946e-4) * r + 0.0151986665636164571966) * r +
                 0.14810397642748007459) * r + 0.68976733498510000455) * r + 1.6763848301838038494) * r +
              2.05319162663775882187) * r + 1.0);
    vd middle = above / below;
    r = tail - 5.0;
    above = (((((((2.01033439929228813265e-7 * r + 2.71155556874348757815e-5) * r + 0.0012426609473880784386) * r +
                 0.026532189526576123093) * r + 0.29656057182850489123) * r + 1.7848265399172913358) * r +
              5.4637849111641143699) * r + 6.6579046435011037772);
    below = (((((((2.04426310338993978564e-15 * r + 1.4215117583164458887e-7) * r + 1.8463183175100546818e-5) * r +
                 7.868691311456132591e-4) * r + 0.0148753612908506148525) * r + 0.13692988092273580531) * r +
              0.59983220655588793769) * r + 1.0);
    vd far = choose(tail <= 5.0, middle, above / below);
    return choose(absolute(q) <= 0.425, central, choose(q < 0.0, -far, far));
}

/* Draw a point from a number u between 0 and 1: u selects a component, and its position within that component's share
 * is the probability of the point. */
SEPARATE void NAME(mixture_draw)(const REAL *p, vd u, const map *m, vd *x, vd *minus_log_density) {
    const long count = m->bins;
    vd weight[count], most = LOAD(p), total = all(0.0), unused;
    for (long k = 1; k < count; k++) most = larger(most, LOAD(p + k * TILE));
    for (long k = 0; k < count; k++) weight[k] = exponential(LOAD(p + k * TILE) - most), total += weight[k];
    vd sum = all(0.0), start = sum, own = weight[0], location = LOAD(p + count * TILE);
    vd scale = NAME(component_scale)(p + 2 * count * TILE, m, &unused);
    u *= total;
    for (long k = 1; k < count; k++) {
        sum += weight[k - 1];
        vl reached = u >= sum;
        start = choose(reached, sum, start), own = choose(reached, weight[k], own);
        location = choose(reached, LOAD(p + (count + k) * TILE), location);
        scale = choose(reached, NAME(component_scale)(p + (2 * count + k) * TILE, m, &unused), scale);
    }
    /* Half the spacing of the random numbers, because u = 0 would give an infinite point. */
    vd least = at_most((sizeof(REAL) == 4 ? 0x1p-25 : 0x1p-54) * total / own, 0.5);
    vd share = at_most(larger((u - start) / own, least), 1.0 - 0x1p-53);
    *x = location + scale * NAME(normal_quantile)(share);
    NAME(mixture_forward)(p, *x, m, &unused, minus_log_density);
    *minus_log_density = -*minus_log_density;
}
