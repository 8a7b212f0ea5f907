/* One step of AdamW for many tensors, with gradient clipping by norm and an exponential moving average of the weights.
 *
 * Included once for each type of tensor. It takes two passes over memory: the tensors of an optimizer together are
 * larger than a cache, and most of the time is spent reading them.
 */

typedef struct {
    REAL *weight;
    const REAL *gradient;
    REAL *mean, *square, *average; /* running means of gradient and squared gradient; averaged weights, or NULL */
    int64_t size;
    double decay; /* weight decay */
} NAME(parameter);

/* For each tensor, its part between two positions in the concatenation of all tensors. */
#define EACH_PART(tensors, count, begin, end, p, first, last)                                                       \
    for (int64_t i_ = 0, at_ = 0; i_ < count && at_ < end; at_ += tensors[i_].size, i_++)                           \
        for (NAME(parameter) *p = &tensors[i_]; p; p = NULL)                                                        \
            for (int64_t first = begin > at_ ? begin - at_ : 0, last = end - at_ < p->size ? end - at_ : p->size,   \
                         once_ = first < last;                                                                      \
                 once_; once_ = 0)

/* Returns the norm of the gradient. If it is not finite, nothing is changed. most: largest norm, beyond it the gradient
 * is scaled down; ema_decay: decay of the averaged weights. */
double NAME(adamw)(NAME(parameter) * tensors, int64_t count, double rate, double beta1, double beta2, double epsilon,
                   double step, double most, double ema_decay, int64_t threads) {
    int64_t total = 0;
    for (int64_t i = 0; i < count; i++) total += tensors[i].size;
    if (threads > 64) threads = 64;
    if (total < 1 << 14) threads = 1;
    double sums[64] = {0}, norm = 0;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        const int64_t me = MEMBER, members = MEMBERS, begin = total * me / members, end = total * (me + 1) / members;
        double sum = 0;
        EACH_PART(tensors, count, begin, end, p, first, last) {
            NAME(vr) squares = {0};
            int64_t i = first;
            for (; i + NAME(LANES) <= last; i += NAME(LANES)) {
                NAME(vr) g = *(const NAME(vr_memory) *)(p->gradient + i);
                squares += g * g;
            }
            for (int l = 0; l < NAME(LANES); l++) sum += squares[l];
            for (; i < last; i++) sum += (double)p->gradient[i] * p->gradient[i];
        }
        sums[me] = sum;
#pragma omp barrier
        double all_sums = 0;
        for (int64_t t = 0; t < members; t++) all_sums += sums[t];
        const double length = __builtin_sqrt(all_sums);
        if (me == 0) norm = length;
        if (__builtin_isfinite(length)) {
            const REAL scale = length > most ? most / (length + 1e-6) : 1.0;
            const REAL keep1 = beta1, keep2 = beta2, new1 = 1.0 - beta1, new2 = 1.0 - beta2;
            const REAL size = rate / (1.0 - __builtin_pow(beta1, step));
            const REAL spread = 1.0 / __builtin_sqrt(1.0 - __builtin_pow(beta2, step)), small = epsilon;
            const REAL toward = 1.0 - ema_decay;
            EACH_PART(tensors, count, begin, end, p, first, last) {
                const REAL shrink = 1.0 - rate * p->decay;
                REAL *restrict weight = p->weight, *restrict mean = p->mean, *restrict square = p->square;
                const REAL *restrict gradient = p->gradient;
                for (int64_t i = first; i < last; i++) {
                    const REAL g = gradient[i] * scale;
                    const REAL m = keep1 * mean[i] + new1 * g, s = keep2 * square[i] + new2 * g * g;
                    mean[i] = m, square[i] = s;
                    weight[i] = shrink * weight[i] - size * m / (ROOT(s) * spread + small);
                }
                REAL *restrict average = p->average;
                if (average)
                    for (int64_t i = first; i < last; i++) average[i] += toward * (weight[i] - average[i]);
            }
        }
    }
    return norm;
}
#undef EACH_PART
