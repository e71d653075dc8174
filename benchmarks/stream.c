/* Read, copy and triad in plain C, after McCalpin's STREAM: to hold the probe kernels against.
   cc -O3 -march=native -fno-tree-loop-distribute-patterns -pthread stream.c -o stream && ./stream THREADS BYTES
   For every line "r 3" (or c, t) it passes three times over BYTES in all and prints seconds and bytes moved.
   (Without that option the compiler turns the copy into memcpy, which may write past the caches.) */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

#define SKEW 2112

static int threads;
static size_t total;
static char *memory;
static int kind, passes;
static pthread_barrier_t barrier;
static double begun[64], ended[64];
static volatile uint32_t sink;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static uint32_t read_all(const uint32_t *restrict a, size_t count) {
    uint32_t s[64] = {0};
    for (size_t i = 0; i < count; i += 64)
        for (int k = 0; k < 64; k++) s[k] += a[i + k];
    for (int k = 1; k < 64; k++) s[0] += s[k];
    return s[0];
}

static void copy(uint32_t *restrict b, const uint32_t *restrict a, size_t count) {
    for (size_t i = 0; i < count; i++) b[i] = a[i];
}

static void triad(float *restrict a, const float *restrict b, const float *restrict c, size_t count) {
    for (size_t i = 0; i < count; i++) a[i] = b[i] + 3.0f * c[i];
}

static int count_arrays(void) { return kind == 'r' ? 1 : kind == 'c' ? 2 : 3; }

static size_t share_of_array(void) { return total / (count_arrays() * threads) / 1024 * 1024; }

static void run_share(size_t thread) {
    size_t share = share_of_array(), array = share * threads + SKEW;
    char *a = memory + thread * share, *b = a + array, *c = b + array;
    pthread_barrier_wait(&barrier);
    begun[thread] = now();
    for (int pass = 0; pass < passes; pass++) {
        if (kind == 'r') sink = read_all((uint32_t *)a, share / 4);
        if (kind == 'c') copy((uint32_t *)b, (uint32_t *)a, share / 4);
        if (kind == 't') triad((float *)a, (float *)b, (float *)c, share / 4);
        __asm__ volatile("" ::: "memory");
    }
    ended[thread] = now();
    pthread_barrier_wait(&barrier);
}

static void *serve(void *argument) {
    for (;;) {
        pthread_barrier_wait(&barrier); /* until there is something to do */
        run_share((size_t)argument);
    }
}

int main(int count, char **arguments) {
    if (count != 3) return 2;
    threads = atoi(arguments[1]);
    total = strtoull(arguments[2], NULL, 10);
    size_t size = total + (2 << 20);
    memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED || threads < 1 || threads > 64) return 1;
    madvise(memory, size, MADV_HUGEPAGE);
    for (size_t i = 0; i < size; i += 4) *(float *)(memory + i) = 1.0f;
    pthread_barrier_init(&barrier, NULL, threads);
    for (size_t i = 1; i < (size_t)threads; i++) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, serve, (void *)i)) return 1;
    }
    char letter;
    while (scanf(" %c %d", &letter, &passes) == 2) {
        kind = letter;
        pthread_barrier_wait(&barrier);
        run_share(0);
        double first = begun[0], last = ended[0];
        for (int i = 1; i < threads; i++) {
            if (begun[i] < first) first = begun[i];
            if (ended[i] > last) last = ended[i];
        }
        printf("%.9f %zu\n", last - first, share_of_array() * threads * count_arrays() * passes);
        fflush(stdout);
    }
    return 0;
}
