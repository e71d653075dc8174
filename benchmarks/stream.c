/* Read, copy and triad in plain C, after McCalpin's STREAM: to hold the probe kernels against, on memory that is given.
   cc -O3 -march=native -funroll-loops -fno-tree-loop-distribute-patterns -pthread -shared -fPIC stream.c -o stream.so
   (Without that option the compiler turns the copy into memcpy, which may write past the caches.) */
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>

#define SKEW 2112
#define MOST_THREADS 64

static int threads;
static size_t total;
static char *memory;
static int kind, passes; /* kind 0: the threads end */
static pthread_barrier_t barrier;
static pthread_t others[MOST_THREADS];
static double begun[MOST_THREADS], ended[MOST_THREADS];
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
        if (kind == 0) return NULL;
        run_share((size_t)argument);
    }
}

/* Start the threads beside the caller's own. The memory has room for SKEW and for rounding up each of three arrays. */
int stream_start(int count, char *given, size_t bytes) {
    if (count < 1 || count > MOST_THREADS) return 1;
    threads = count;
    memory = given;
    total = bytes;
    pthread_barrier_init(&barrier, NULL, threads);
    for (size_t i = 1; i < (size_t)threads; i++)
        if (pthread_create(&others[i], NULL, serve, (void *)i)) return 1;
    return 0;
}

/* Pass so many times over the memory: 'r' reads, 'c' copies, 't' is the triad. Returns bytes per second. */
double stream_run(int letter, int times) {
    kind = letter;
    passes = times;
    pthread_barrier_wait(&barrier);
    run_share(0);
    double first = begun[0], last = ended[0];
    for (int i = 1; i < threads; i++) {
        if (begun[i] < first) first = begun[i];
        if (ended[i] > last) last = ended[i];
    }
    return share_of_array() * threads * count_arrays() * (double)passes / (last - first);
}

void stream_stop(void) {
    kind = 0;
    pthread_barrier_wait(&barrier);
    for (int i = 1; i < threads; i++) pthread_join(others[i], NULL);
    pthread_barrier_destroy(&barrier);
}
