/* Reads a block of memory with several threads, the way weights are read: once, in order, and nothing else.
   cc -O3 -mavx2 -pthread read_bandwidth.c -o read_bandwidth && ./read_bandwidth THREADS MEGABYTES SECONDS
   Prints bytes per second: the median and the best of the passes that fit into the time. */
#include <immintrin.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static uint8_t *memory;
static size_t share;
static int threads;
static pthread_barrier_t barrier;
static _Atomic uint64_t sink;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

#define PASSES 100000
static double rates[PASSES], deadline;
static int passes;

static int compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void *run(void *argument) {
    size_t index = (size_t)argument;
    const uint8_t *at = memory + index * share;
    for (;;) {
        pthread_barrier_wait(&barrier);
        double start = now();
        __m256i a = _mm256_setzero_si256(), b = a, c = a, d = a;
        for (size_t i = 0; i < share; i += 128) {
            a = _mm256_xor_si256(a, _mm256_load_si256((const __m256i *)(at + i)));
            b = _mm256_xor_si256(b, _mm256_load_si256((const __m256i *)(at + i + 32)));
            c = _mm256_xor_si256(c, _mm256_load_si256((const __m256i *)(at + i + 64)));
            d = _mm256_xor_si256(d, _mm256_load_si256((const __m256i *)(at + i + 96)));
        }
        a = _mm256_xor_si256(_mm256_xor_si256(a, b), _mm256_xor_si256(c, d));
        sink += (uint64_t)_mm256_extract_epi64(a, 0);
        pthread_barrier_wait(&barrier);
        if (index == 0 && passes < PASSES) rates[passes++] = (double)share * threads / (now() - start);
        pthread_barrier_wait(&barrier);
        if (now() > deadline) return NULL;
    }
}

int main(int count, char **arguments) {
    if (count != 4) return 2;
    threads = atoi(arguments[1]);
    size_t size = (size_t)atoi(arguments[2]) << 20;
    share = size / threads / 128 * 128;
    memory = aligned_alloc(4096, size);
    if (!memory || threads < 1 || threads > 256) return 1;
    memset(memory, 1, size);
    deadline = now() + atof(arguments[3]);
    pthread_barrier_init(&barrier, NULL, threads);
    pthread_t ids[256];
    for (size_t i = 1; i < (size_t)threads; i++) pthread_create(&ids[i], NULL, run, (void *)i);
    /* every thread must leave in the same round: the deadline is checked between two barriers by all of them,
       and one late look could differ, so the process simply ends when the first one is done */
    run((void *)0);
    qsort(rates, passes, sizeof *rates, compare);
    printf("%.0f %.0f\n", rates[passes / 2], rates[passes - 1]);
    return 0;
}
