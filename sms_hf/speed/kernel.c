/* Products with weights that take less memory: of a sparse W, and of a dense one of 8 bits. Compiled for the machine that it runs on
 * (`-march=native`), called through ctypes.
 *
 * y = x W^T + b for a sparse W: rows of x lie across the lanes of a vector, so that every kept weight is one multiply-add of a whole vector, whatever
 * its column is. */
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#define WIDE 16
#elif defined(__AVX__)
#define WIDE 8
#else
#define WIDE 4
#endif

typedef float vector __attribute__((vector_size(4 * WIDE), aligned(4)));
typedef int32_t places __attribute__((vector_size(4 * WIDE)));

#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (places){__VA_ARGS__})
#endif
#if WIDE == 16
#define FIRST_HALVES(a, b) SHUFFLE(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23)
#define LAST_HALVES(a, b) SHUFFLE(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
#elif WIDE == 8
#define FIRST_HALVES(a, b) SHUFFLE(a, b, 0, 8, 1, 9, 2, 10, 3, 11)
#define LAST_HALVES(a, b) SHUFFLE(a, b, 4, 12, 5, 13, 6, 14, 7, 15)
#else
#define FIRST_HALVES(a, b) SHUFFLE(a, b, 0, 4, 1, 5)
#define LAST_HALVES(a, b) SHUFFLE(a, b, 2, 6, 3, 7)
#endif

/* In place: each turn rotates the bits of an element's place (row, column) by one, and after as many as a row number has they are swapped. */
static inline __attribute__((always_inline)) void transpose(vector *square) {
    for (int turn = 1; turn < WIDE; turn *= 2) {
        vector next[WIDE];
        for (int i = 0; i < WIDE / 2; i++) {
            next[2 * i] = FIRST_HALVES(square[i], square[i + WIDE / 2]);
            next[2 * i + 1] = LAST_HALVES(square[i], square[i + WIDE / 2]);
        }
        memcpy(square, next, sizeof(next));
    }
}

/* A tile of `lanes` rows, transposed: tile[column][row]; rows beyond the last are zero. */
static void load_tile(const float *x, float *tile, long rows, long columns, long lanes) {
    for (long from = 0; from < lanes; from += WIDE) {
        const long count = rows - from < WIDE ? rows - from : WIDE;
        for (long c = 0; c < columns; c += WIDE) {
            const long size = columns - c < WIDE ? columns - c : WIDE;
            vector square[WIDE] = {{0}};
            if (size == WIDE)
                for (long r = 0; r < count; r++) memcpy(&square[r], x + (from + r) * columns + c, sizeof(vector));
            else
                for (long r = 0; r < count; r++)
                    for (long i = 0; i < size; i++) square[r][i] = x[(from + r) * columns + c + i];
            transpose(square);
            for (long i = 0; i < size; i++) memcpy(tile + (c + i) * lanes + from, &square[i], sizeof(vector));
        }
    }
}

/* Two weights at a time, and one or two vectors of rows each: several sums that do not wait for each other. */
static inline __attribute__((always_inline)) void multiply_tile(const int vectors, const float *tile, float *y, const float *bias,
                                                                const int32_t *start, const uint16_t *column, const float *value,
                                                                long rows, long outputs, long from, long to) {
    const long lanes = vectors * WIDE;
    for (long o = from; o < to; o += WIDE) {
        const long count = to - o < WIDE ? to - o : WIDE;
        vector sums[2][WIDE] = {{{0}}};
        for (long j = 0; j < count; j++) {
            vector even[2] = {{0}, {0}}, odd[2] = {{0}, {0}};
            long k = start[o + j];
            const long end = start[o + j + 1];
            for (; k + 1 < end; k += 2) {
                const vector *p = (const vector *)(tile + column[k] * lanes), *q = (const vector *)(tile + column[k + 1] * lanes);
                for (int v = 0; v < vectors; v++) {
                    even[v] += value[k] * p[v];
                    odd[v] += value[k + 1] * q[v];
                }
            }
            if (k < end) {
                const vector *p = (const vector *)(tile + column[k] * lanes);
                for (int v = 0; v < vectors; v++) even[v] += value[k] * p[v];
            }
            for (int v = 0; v < vectors; v++) sums[v][j] = even[v] + odd[v] + (bias ? bias[o + j] : 0.0f);
        }
        for (int v = 0; v < vectors; v++) {
            transpose(sums[v]);
            const long last = rows < (v + 1) * WIDE ? rows : (v + 1) * WIDE;
            if (count == WIDE)
                for (long r = v * WIDE; r < last; r++) memcpy(y + r * outputs + o, &sums[v][r - v * WIDE], sizeof(vector));
            else
                for (long r = v * WIDE; r < last; r++)
                    for (long j = 0; j < count; j++) y[r * outputs + o + j] = sums[v][r - v * WIDE][j];
        }
    }
}

static void multiply_row(const float *x, float *y, const float *bias, const int32_t *start, const uint16_t *column, const float *value, long from,
                         long to) {
    for (long o = from; o < to; o++) {
        float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
        for (long k = start[o]; k < start[o + 1]; k++) sum += value[k] * x[column[k]];
        y[o] = sum + (bias ? bias[o] : 0.0f);
    }
}

/* `tile`: TILE_ROWS * columns floats of the caller's. */
void sparse_linear(const float *x, float *y, const float *bias, const int32_t *start, const uint16_t *column, const float *value, float *tile,
                   long rows, long columns, long outputs, int threads) {
    for (long r = 0, size; r < rows; r += size) {
        size = rows - r < 2 * WIDE ? rows - r : 2 * WIDE;
        const long lanes = size > WIDE ? 2 * WIDE : WIDE;
        if (size > 1) load_tile(x + r * columns, tile, size, columns, lanes);
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
        for (long o = 0; o < outputs; o += 64) {
            const long to = o + 64 < outputs ? o + 64 : outputs;
            if (size == 1)
                multiply_row(x + r * columns, y + r * outputs, bias, start, column, value, o, to);
            else if (lanes == WIDE)
                multiply_tile(1, tile, y + r * outputs, bias, start, column, value, size, outputs, o, to);
            else
                multiply_tile(2, tile, y + r * outputs, bias, start, column, value, size, outputs, o, to);
        }
    }
}

long tile_rows(void) { return 2 * WIDE; }

/* y = x (s W)^T + b for a dense W of 8 bits and a scale s of each output: what is read from memory is a quarter, which is what few rows wait for. */
static inline __attribute__((always_inline)) void multiply_bytes(const int count, const float *x, float *y, const float *bias, const int8_t *weight,
                                                                 const float *scale, long columns, long outputs, long from, long to) {
    const float *x1 = x + (count > 1) * columns, *x2 = x + 2 * (count > 2) * columns, *x3 = x + 3 * (count > 3) * columns;
    for (long o = from; o < to; o++) {
        const int8_t *w = weight + o * columns;
        float s0 = 0.0f, s1 = 0.0f, s2 = 0.0f, s3 = 0.0f;
#pragma omp simd reduction(+ : s0, s1, s2, s3)
        for (long k = 0; k < columns; k++) {
            const float value = w[k];
            s0 += value * x[k];
            if (count > 1) s1 += value * x1[k];
            if (count > 2) s2 += value * x2[k];
            if (count > 3) s3 += value * x3[k];
        }
        const float sums[4] = {s0, s1, s2, s3};
        for (int r = 0; r < count; r++) y[r * outputs + o] = sums[r] * scale[o] + (bias ? bias[o] : 0.0f);
    }
}

void int8_linear(const float *x, float *y, const float *bias, const int8_t *weight, const float *scale, long rows, long columns, long outputs,
                 int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (long o = 0; o < outputs; o += 64) {
        const long to = o + 64 < outputs ? o + 64 : outputs;
        for (long r = 0; r < rows; r += 4) {
            const float *from = x + r * columns;
            float *into = y + r * outputs;
            switch (rows - r) {
                case 1: multiply_bytes(1, from, into, bias, weight, scale, columns, outputs, o, to); break;
                case 2: multiply_bytes(2, from, into, bias, weight, scale, columns, outputs, o, to); break;
                case 3: multiply_bytes(3, from, into, bias, weight, scale, columns, outputs, o, to); break;
                default: multiply_bytes(4, from, into, bias, weight, scale, columns, outputs, o, to);
            }
        }
    }
}
