/* What this machine can do at most: read memory (GB/s) and multiply-add F32 (GFLOP/s), on a given number of threads.
 *
 *   cc -O3 -march=native -pthread bandwidth.c -o bandwidth && ./bandwidth THREADS PASSES BYTES
 *
 * Prints one JSON object; each list holds one number a pass. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

/* The widest vector of the target; the compiler's vector types spare one set of intrinsics for each. */
#if defined(__AVX512F__)
#define SIMD "AVX-512"
enum { WIDTH = 64, CHAINS = 24 };
#elif defined(__AVX2__)
#define SIMD "AVX2"
enum { WIDTH = 32, CHAINS = 12 }; /* 16 registers: 12 chains, two constants */
#else
#define SIMD "128 bits"
enum { WIDTH = 16, CHAINS = 24 };
#endif
typedef float floats __attribute__((vector_size(WIDTH)));
typedef uint64_t words __attribute__((vector_size(WIDTH)));

enum { MAX_THREADS = 64, FMA_STEPS = 8 << 20 };

typedef struct {
  words *data;
  size_t count;   /* vectors */
  uint64_t sink;  /* what the work came to, so that it cannot be left out */
} part;

static double seconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static void *fill(void *argument) {
  part *p = argument;
  memset(p->data, 1, p->count * sizeof(words));
  return NULL;
}

/* Four streams: one alone leaves the prefetchers of some cores idle. */
static void *read_all(void *argument) {
  part *p = argument;
  words sum[8] = {0};
  size_t quarter = p->count / 4;
  for (size_t i = 0; i + 1 < quarter; i += 2)
    for (size_t stream = 0; stream < 4; stream++) {
      sum[2 * stream] ^= p->data[stream * quarter + i];
      sum[2 * stream + 1] ^= p->data[stream * quarter + i + 1];
    }
  for (int i = 1; i < 8; i++) sum[0] ^= sum[i];
  p->sink ^= sum[0][0];
  return NULL;
}

/* Independent chains of x = x * a + b, enough of them to hide the latency of every FMA unit. */
static void *multiply_add(void *argument) {
  part *p = argument;
  floats x[CHAINS], a, b;
  volatile float one = 1.0f, small = 1e-9f; /* unknown to the compiler */
  for (int lane = 0; lane < WIDTH / 4; lane++) a[lane] = one, b[lane] = small;
  for (int chain = 0; chain < CHAINS; chain++) x[chain] = b * (float)chain;
  for (int step = 0; step < FMA_STEPS; step++) {
#pragma GCC unroll 24
    for (int chain = 0; chain < CHAINS; chain++) x[chain] = x[chain] * a + b;
  }
  for (int chain = 1; chain < CHAINS; chain++) x[0] += x[chain];
  p->sink ^= (uint64_t)x[0][0];
  return NULL;
}

static double on_threads(void *(*work)(void *), part *parts, int threads) {
  pthread_t ids[MAX_THREADS];
  double start = seconds();
  for (int i = 0; i < threads; i++)
    if (pthread_create(&ids[i], NULL, work, &parts[i])) exit(1);
  for (int i = 0; i < threads; i++) pthread_join(ids[i], NULL);
  return seconds() - start;
}

static void report(const char *name, void *(*work)(void *), part *parts, int threads, int passes, double amount) {
  on_threads(work, parts, threads); /* warm-up */
  printf(", \"%s\": [", name);
  for (int pass = 0; pass < passes; pass++)
    printf("%s%.2f", pass ? ", " : "", amount / on_threads(work, parts, threads) / 1e9);
  printf("]");
}

static void report_read(const char *name, int advice, part *parts, int threads, int passes, size_t bytes) {
  char *buffer = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1, 0);
  if (buffer == MAP_FAILED) exit(1);
  if (advice >= 0) madvise(buffer, bytes, advice);
  size_t each = bytes / (size_t)threads / 4096 * 4096;
  for (int i = 0; i < threads; i++)
    parts[i] = (part){(words *)(buffer + (size_t)i * each), each / sizeof(words), 0};
  on_threads(fill, parts, threads);
  report(name, read_all, parts, threads, passes, (double)each * threads);
  munmap(buffer, bytes);
}

int main(int argc, char **argv) {
  int threads = argc > 1 ? atoi(argv[1]) : 2, passes = argc > 2 ? atoi(argv[2]) : 9;
  size_t bytes = argc > 3 ? strtoull(argv[3], NULL, 10) : (size_t)2 << 30;
  if (threads < 1 || threads > MAX_THREADS || passes < 1) return 1;
  part parts[MAX_THREADS] = {0};
  printf("{\"simd\": \"%s\"", SIMD);
  report("fma_gflops", multiply_add, parts, threads, passes, 2.0 * FMA_STEPS * CHAINS * (WIDTH / 4) * threads);
#ifdef MADV_HUGEPAGE
  report_read("read_gbs_huge", MADV_HUGEPAGE, parts, threads, passes, bytes);
  report_read("read_gbs", MADV_NOHUGEPAGE, parts, threads, passes, bytes);
#else
  report_read("read_gbs", -1, parts, threads, passes, bytes);
#endif
  printf("}\n");
  return 0;
}
