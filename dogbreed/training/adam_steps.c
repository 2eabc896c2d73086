/* Several steps of Adam for many linear classifiers side by side. `adam_steps.py` says what the numbers mean, and compiles
 * this; `_Stack.step` does the same step by step in torch.
 *
 * A head takes all steps before the next one begins, so that its weights and moments stay in the processor's cache, and
 * its gradient is never written to memory: six rows of it, some columns long, are used up at once. */
#include <immintrin.h>
#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <string.h>

typedef __m256 lanes;

enum {
    LANES = 8,
    PANEL = 16,      /* numbers that a tile is wide */
    ROWS = 6,        /* and how high: with 12 sums of a tile, all 16 registers are in use */
    PACKED = 32768,  /* numbers of the inputs that lie in the second nearest cache, as tiles need them */
    COLUMNS = 512,  /* most inputs that are taken at once */
};

typedef struct {
    const float *inputs;   /* [images, width], or [heads, images, width] */
    const int64_t *labels; /* [images], or [heads, images], where -1 fills up */
    int64_t images;
    float mean_part, square_keep, square_part; /* 1 - beta1, beta2, 1 - beta2 */
    float unbias, eps, rate, shrink, decay;    /* 1 / sqrt(1 - beta2^t); eps; lr / (1 - beta1^t); parts of both decays */
} step;

typedef struct {
    float rate, smoothing, decay;
} head;

typedef struct {
    float *weight, *weight_mean, *weight_square; /* [classes, width] */
    float *bias, *bias_mean, *bias_square;       /* [classes] */
} values;

static lanes every(float value) { return _mm256_set1_ps(value); }

static int64_t smaller(int64_t one, int64_t other) { return one < other ? one : other; }

static int64_t padded(int64_t images) { return (images + PANEL - 1) / PANEL * PANEL; }

/* Columns that are packed at once: all threads have some, and whole panels. */
static int64_t chunk(int64_t width, int64_t images, int64_t threads)
{
    const int64_t part = (width + threads - 1) / threads, most = smaller(smaller(PACKED / images, COLUMNS), part);
    return most < PANEL ? PANEL : most / PANEL * PANEL;
}

/* sums [rows, 16] += factors [rows, count] x panel [count, 16]; of `fresh` sums, whatever is there does not count. */
static inline __attribute__((always_inline)) void tile(const int rows, const float *factors, int64_t apart,
                                                       const float *panel, int64_t count, float *sums, int64_t stride,
                                                       int fresh)
{
    lanes sum[ROWS][2];
#pragma GCC unroll 6
    for (int row = 0; row < rows; row++) {
        sum[row][0] = fresh ? every(0) : _mm256_loadu_ps(sums + row * stride);
        sum[row][1] = fresh ? every(0) : _mm256_loadu_ps(sums + row * stride + LANES);
    }
    for (int64_t at = 0; at < count; at++) {
        const lanes left = _mm256_load_ps(panel + PANEL * at), right = _mm256_load_ps(panel + PANEL * at + LANES);
#pragma GCC unroll 6
        for (int row = 0; row < rows; row++) {
            const lanes factor = _mm256_broadcast_ss(factors + row * apart + at);
            sum[row][0] = _mm256_fmadd_ps(factor, left, sum[row][0]);
            sum[row][1] = _mm256_fmadd_ps(factor, right, sum[row][1]);
        }
    }
#pragma GCC unroll 6
    for (int row = 0; row < rows; row++) {
        _mm256_storeu_ps(sums + row * stride, sum[row][0]);
        _mm256_storeu_ps(sums + row * stride + LANES, sum[row][1]);
    }
}

static void tiles(int64_t rows, const float *factors, int64_t apart, const float *panel, int64_t count, float *sums,
                  int64_t stride, int fresh)
{
    if (rows == ROWS)
        tile(ROWS, factors, apart, panel, count, sums, stride, fresh);
    else
        for (int64_t row = 0; row < rows; row++)
            tile(1, factors + row * apart, apart, panel, count, sums + row * stride, stride, fresh);
}

/* e^x of numbers not above 0: 2^n e^f with |f| below ln(2) / 2, by the polynomial of Cephes' expf. */
static lanes exponential(lanes x)
{
    x = _mm256_max_ps(every(-87), x); /* in this order, what is not a number stays so */
    const lanes n = _mm256_round_ps(x * every(1.44269504f), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const lanes f = x - n * every(0.693359375f) + n * every(2.12194440e-4f);
    lanes y = every(1.9875691500e-4f);
    y = y * f + every(1.3981999507e-3f);
    y = y * f + every(8.3334519073e-3f);
    y = y * f + every(4.1665795894e-2f);
    y = y * f + every(1.6666665459e-1f);
    y = y * f + every(5.0000001201e-1f);
    y = y * f * f + f + every(1);
    const __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return y * _mm256_castsi256_ps(power);
}

/* Eight columns of logits [classes] become the slopes of the mean loss; return the sum of their losses. */
static double slopes(float *logits, int64_t stride, int64_t classes, const float *bias, const head *of,
                     const int64_t *labels, int64_t there, float count)
{
    lanes most = every(-INFINITY), total = every(0), all = every(0);
    for (int64_t row = 0; row < classes; row++) {
        const lanes value = (_mm256_load_ps(logits + row * stride) + every(bias[row])) * every(of->rate);
        _mm256_store_ps(logits + row * stride, value);
        most = _mm256_max_ps(most, value);
        all += value;
    }
    float at_label[LANES] = {0}, parts[3][LANES], part[LANES] = {0};
    for (int64_t image = 0; image < there; image++)
        if (labels[image] >= 0) {
            at_label[image] = logits[labels[image] * stride + image];
            part[image] = 1 / count;
        }
    for (int64_t row = 0; row < classes; row++) {
        const lanes value = exponential(_mm256_load_ps(logits + row * stride) - most);
        _mm256_store_ps(logits + row * stride, value);
        total += value;
    }
    const lanes share = _mm256_loadu_ps(part), factor = share / total, evenly = share * every(of->smoothing / classes);
    for (int64_t row = 0; row < classes; row++)
        _mm256_store_ps(logits + row * stride, _mm256_load_ps(logits + row * stride) * factor - evenly);
    _mm256_storeu_ps(parts[0], most);
    _mm256_storeu_ps(parts[1], total);
    _mm256_storeu_ps(parts[2], all);
    double loss = 0;
    for (int64_t image = 0; image < there; image++)
        if (labels[image] >= 0) {
            const double norm = parts[0][image] + log(parts[1][image]);
            logits[labels[image] * stride + image] -= (1 - of->smoothing) * part[image];
            loss += norm - (1 - of->smoothing) * at_label[image] - of->smoothing * parts[2][image] / classes;
        }
    return loss;
}

/* Eight columns of eight rows, as eight rows of a panel. */
static void turn(const float *from, int64_t apart, int64_t there, float *to)
{
    lanes in[8], pairs[8], fours[8];
    for (int64_t row = 0; row < 8; row++)
        in[row] = row < there ? _mm256_loadu_ps(from + row * apart) : every(0);
    for (int k = 0; k < 4; k++) {
        pairs[2 * k] = _mm256_unpacklo_ps(in[2 * k], in[2 * k + 1]);
        pairs[2 * k + 1] = _mm256_unpackhi_ps(in[2 * k], in[2 * k + 1]);
    }
    for (int k = 0; k < 8; k += 4)
        for (int half = 0; half < 2; half++) {
            fours[k + 2 * half] = _mm256_shuffle_ps(pairs[k + half], pairs[k + 2 + half], 0x44);
            fours[k + 2 * half + 1] = _mm256_shuffle_ps(pairs[k + half], pairs[k + 2 + half], 0xee);
        }
    for (int k = 0; k < 4; k++) {
        _mm256_store_ps(to + PANEL * k, _mm256_permute2f128_ps(fours[k], fours[k + 4], 0x20));
        _mm256_store_ps(to + PANEL * (k + 4), _mm256_permute2f128_ps(fours[k], fours[k + 4], 0x31));
    }
}

/* Products [classes, images] of the weights and the inputs [images, width]; the images fill up whole panels. */
static void forth(const float *inputs, int64_t images, int64_t width, const float *weight, int64_t classes,
                  float *products, int64_t stride)
{
    float packed[PACKED] __attribute__((aligned(64)));
    const int64_t whole = padded(images), columns = chunk(width, whole, 1);
    for (int64_t start = 0; start < width; start += columns) {
        const int64_t wide = smaller(columns, width - start);
        for (int64_t image = 0; image < whole; image += LANES)
            for (int64_t at = 0; at < wide; at += LANES)
                turn(inputs + image * width + start + at, width, images - image,
                     packed + image / PANEL * PANEL * wide + at * PANEL + image % PANEL);
        for (int64_t row = 0; row < classes; row += ROWS)
            for (int64_t image = 0; image < whole; image += PANEL)
                tiles(smaller(ROWS, classes - row), weight + row * width + start, width, packed + image * wide, wide,
                      products + row * stride + image, stride, start == 0);
    }
}

static void update(const step *now, float shrink, float decay, const float *gradient, int64_t count, float *value,
                   float *mean, float *square)
{
    for (int64_t at = 0; at < count; at += LANES) {
        lanes w = _mm256_loadu_ps(value + at), m = _mm256_loadu_ps(mean + at), v = _mm256_loadu_ps(square + at);
        const lanes g = _mm256_loadu_ps(gradient + at) + every(decay) * w;
        m += every(now->mean_part) * (g - m);
        v = every(now->square_keep) * v + every(now->square_part) * g * g;
        w = every(shrink) * w - every(now->rate) * m / (_mm256_sqrt_ps(v) * every(now->unbias) + every(now->eps));
        _mm256_storeu_ps(value + at, w);
        _mm256_storeu_ps(mean + at, m);
        _mm256_storeu_ps(square + at, v);
    }
}

/* The same for one value. */
static void update_one(const step *now, float shrink, float decay, float gradient, float *value, float *mean,
                       float *square)
{
    gradient += decay * *value;
    *mean += now->mean_part * (gradient - *mean);
    *square = now->square_keep * *square + now->square_part * gradient * gradient;
    *value = shrink * *value - now->rate * *mean / (sqrtf(*square) * now->unbias + now->eps);
}

/* Adam's step of the weights in some columns, by the gradient slopes [classes, images] x inputs [images, width]. */
static void back(const step *now, const head *of, const float *inputs, const float *slope, int64_t stride,
                 int64_t classes, int64_t width, int64_t start, int64_t wide, const values *own)
{
    float packed[PACKED] __attribute__((aligned(64))), gradient[ROWS * COLUMNS] __attribute__((aligned(64)));
    const float shrink = 1 - now->shrink * of->decay, decay = now->decay * of->decay;
    for (int64_t image = 0; image < now->images; image++)
        for (int64_t at = 0; at < wide; at += PANEL)
            memcpy(packed + at * now->images + image * PANEL, inputs + image * width + start + at, 4 * PANEL);
    for (int64_t row = 0; row < classes; row += ROWS) {
        const int64_t rows = smaller(ROWS, classes - row);
        for (int64_t at = 0; at < wide; at += PANEL)
            tiles(rows, slope + row * stride, stride, packed + at * now->images, now->images, gradient + at, wide, 1);
        for (int64_t r = 0; r < rows; r++) {
            const int64_t at = (row + r) * width + start;
            update(now, shrink, decay, gradient + r * wide, wide, own->weight + at, own->weight_mean + at,
                   own->weight_square + at);
        }
    }
}

/* One step of one head; return the sum of its losses before it. */
static double take_step(const step *now, const head *of, const float *inputs, const int64_t *labels, int64_t classes,
                        int64_t width, const values *own, float *logits, int64_t threads)
{
    const int64_t images = now->images, stride = padded(images), columns = chunk(width, images, threads);
    const int64_t part = padded((images + threads - 1) / threads);
    double loss = 0;
    float count = 0;
    for (int64_t image = 0; image < images; image++)
        count += labels[image] >= 0;
#pragma omp parallel for num_threads(threads) reduction(+ : loss)
    for (int64_t first = 0; first < images; first += part) {
        forth(inputs + first * width, smaller(part, images - first), width, own->weight, classes, logits + first, stride);
        for (int64_t image = first; image < smaller(first + part, images); image += LANES)
            loss += slopes(logits + image, stride, classes, own->bias, of, labels + image,
                           smaller(LANES, images - image), count);
    }
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t start = 0; start < width; start += columns)
        back(now, of, inputs, logits, stride, classes, width, start, smaller(columns, width - start), own);
    for (int64_t row = 0; row < classes; row++) {
        float gradient = 0;
        for (int64_t image = 0; image < images; image++)
            gradient += logits[row * stride + image];
        update_one(now, 1 - now->shrink * of->decay, now->decay * of->decay, gradient, own->bias + row,
                   own->bias_mean + row, own->bias_square + row);
    }
    return loss;
}

/* `apart`: whether each head has inputs and labels of its own. `logits`: room for [threads, classes, most images].
 * `losses`: of each head, summed over the images. */
void take_steps(const step *steps, int64_t count, const head *heads, int64_t many, int64_t classes, int64_t width,
                int64_t apart, const values *all, float *logits, int64_t room, double *losses, int64_t threads)
{
    const int64_t side = many > threads / 2 ? smaller(many, threads) : 1; /* heads side by side, or all share in one */
#pragma omp parallel for num_threads(side) schedule(dynamic)
    for (int64_t index = 0; index < many; index++) {
        const int64_t from = index * classes;
        const values own = {all->weight + from * width, all->weight_mean + from * width,
                            all->weight_square + from * width, all->bias + from, all->bias_mean + from,
                            all->bias_square + from};
        losses[index] = 0;
        for (const step *now = steps; now < steps + count; now++) {
            const int64_t own_inputs = apart * index * now->images;
            losses[index] += take_step(now, heads + index, now->inputs + own_inputs * width, now->labels + own_inputs,
                                       classes, width, &own, logits + (side > 1 ? omp_get_thread_num() : 0) * room,
                                       side > 1 ? 1 : threads);
        }
    }
}
