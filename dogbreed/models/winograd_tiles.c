/* What comes before and behind the 36 matrix products of Winograd's F(4x4, 3x3): a tile at a time, in eight channels at
 * once. `winograd_tiles.py` says what the numbers mean, compiles this and does the same without it.
 *
 * Images are [count, height, width, channels] with the strides of the first three; outputs, too, of whole tiles, contiguous.
 * Tiles are those of `high` rows from `first`, `across` in each. Points are [36, tiles, channels], `plane` numbers from
 * one point to the next. */
#include <stdint.h>
#include <string.h>

#define A 0.75f
#define B 1.5f

typedef float lanes __attribute__((vector_size(32)));
typedef int32_t masks __attribute__((vector_size(32)));

static inline lanes load(const float *from)
{
    lanes value;
    memcpy(&value, from, sizeof value);
    return value;
}

static inline void store(float *to, lanes value)
{
    memcpy(to, &value, sizeof value);
}

static inline lanes larger(lanes one, lanes other)
{
    masks less = one < other;
    return (lanes)(((masks)one & ~less) | ((masks)other & less));
}

/* Bring six numbers, `step` apart, to the points 0, A, -A, B, -B and infinity. */
static inline void to_six(const lanes *d, int step, lanes *out)
{
    const float a = 1 / (2 * A * A * (A * A - B * B)), b = 1 / (2 * B * B * (B * B - A * A));
    const lanes one = d[step], two = d[2 * step], three = d[3 * step], four = d[4 * step];
    const lanes even_a = a * four - (a * B * B) * two, odd_a = (a * A) * three - (a * A * B * B) * one;
    const lanes even_b = b * four - (b * A * A) * two, odd_b = (b * B) * three - (b * B * A * A) * one;
    out[0] = d[0] - (1 / (A * A) + 1 / (B * B)) * two + (1 / (A * A * B * B)) * four;
    out[1] = even_a + odd_a;
    out[2] = even_a - odd_a;
    out[3] = even_b + odd_b;
    out[4] = even_b - odd_b;
    out[5] = d[5 * step] - (A * A + B * B) * three + (A * A * B * B) * one;
}

/* Bring the six points, `step` apart, back to four numbers. */
static inline void to_four(const lanes *m, int step, lanes *out)
{
    const lanes sum_a = m[step] + m[2 * step], gap_a = m[step] - m[2 * step];
    const lanes sum_b = m[3 * step] + m[4 * step], gap_b = m[3 * step] - m[4 * step];
    out[0] = m[0] + sum_a + sum_b;
    out[1] = A * gap_a + B * gap_b;
    out[2] = (A * A) * sum_a + (B * B) * sum_b;
    out[3] = (A * A * A) * gap_a + (B * B * B) * gap_b + m[5 * step];
}

void to_points(const float *images, const int64_t *strides, int64_t count, int64_t height, int64_t width,
               int64_t channels, int64_t first, int64_t high, int64_t across, const float *zeros, float *points,
               int64_t plane)
{
    for (int64_t tile = 0; tile < count * high * across; tile++, points += channels) {
        const int64_t image = tile / (high * across), row = first + tile / across % high, column = tile % across;
        const float *pixels[36];
        for (int i = 0; i < 36; i++) {
            const int64_t y = 4 * row - 1 + i / 6, x = 4 * column - 1 + i % 6;
            const int inside = y >= 0 && y < height && x >= 0 && x < width;
            pixels[i] = inside ? images + image * strides[0] + y * strides[1] + x * strides[2] : zeros;
        }
        for (int64_t channel = 0; channel < channels; channel += 8) {
            lanes d[36], columns[36], row_of_six[6];
            for (int i = 0; i < 36; i++)
                d[i] = load(pixels[i] + channel);
            for (int x = 0; x < 6; x++)
                to_six(d + x, 6, columns + 6 * x);
            for (int p = 0; p < 6; p++) {
                to_six(columns + p, 6, row_of_six);
                for (int q = 0; q < 6; q++)
                    store(points + (6 * p + q) * plane + channel, row_of_six[q]);
            }
        }
    }
}

void from_points(const float *points, int64_t plane, const float *bias, int64_t count, int64_t height, int64_t width,
                 int64_t channels, int64_t first, int64_t high, int64_t across, int64_t relu, int64_t pool,
                 float *outputs)
{
    const int side = pool ? 2 : 4;
    const lanes none = {0};
    for (int64_t tile = 0; tile < count * high * across; tile++, points += channels) {
        const int64_t image = tile / (high * across), row = first + tile / across % high, column = tile % across;
        for (int64_t channel = 0; channel < channels; channel += 8) {
            const lanes shift = load(bias + channel);
            lanes m[6], rows[24], y[16]; /* y: by column, then by row */
            for (int p = 0; p < 6; p++) {
                for (int q = 0; q < 6; q++)
                    m[q] = load(points + (6 * p + q) * plane + channel);
                to_four(m, 1, rows + 4 * p);
            }
            for (int x = 0; x < 4; x++)
                to_four(rows + x, 4, y + 4 * x);
            for (int i = 0; i < side; i++)
                for (int j = 0; j < side; j++) {
                    const int64_t down = side * row + i, right = side * column + j;
                    const lanes *square = y + 8 * j + 2 * i;
                    lanes value = pool ? larger(larger(square[0], square[1]), larger(square[4], square[5]))
                                       : y[4 * j + i];
                    value += shift;
                    if (relu)
                        value = larger(value, none);
                    store(outputs + ((image * height + down) * width + right) * channels + channel, value);
                }
        }
    }
}
