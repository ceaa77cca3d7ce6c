/* A C program that embeds texts and does nothing else, for its memory: embed LIBRARY MODEL TEXTS
 *
 * TEXTS: a file of texts, each ended by a zero byte. Prints the sum of all numbers, then waits for the end of its input, so that
 * the parent can look at it. The library is opened, not linked, so that it need not be installed. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "metal_candle.h"

static void *library;

static void *find(const char *name) {
  void *function = dlsym(library, name);
  if (function) return function;
  fprintf(stderr, "embed: no %s in the library\n", name);
  exit(1);
}
#define MC(name) ((__typeof__(&name))find(#name))

static void check(mc_status status, const mc_error *error) {
  if (status == MC_OK) return;
  fprintf(stderr, "embed: %s\n", MC(mc_error_message)(error));
  exit(1);
}

/* The texts of a file; they stay in memory. */
static const char **read_texts(const char *path, size_t *count) {
  FILE *file = fopen(path, "rb");
  if (!file || fseek(file, 0, SEEK_END)) exit(1);
  size_t size = (size_t)ftell(file);
  char *bytes = malloc(size);
  rewind(file);
  if (!bytes || fread(bytes, 1, size, file) != size) exit(1);
  fclose(file);
  const char **texts = NULL;
  *count = 0;
  for (char *text = bytes; text < bytes + size; text += strlen(text) + 1) {
    texts = realloc(texts, (*count + 1) * sizeof *texts);
    texts[(*count)++] = text;
  }
  return texts;
}

int main(int argc, char **argv) {
  if (argc != 4 || !(library = dlopen(argv[1], RTLD_NOW))) {
    fprintf(stderr, "embed: %s\n", argc == 4 ? dlerror() : "expected LIBRARY MODEL TEXTS");
    return 1;
  }
  size_t count;
  const char **texts = read_texts(argv[3], &count);
  mc_error *error = NULL;
  mc_model *model = NULL;
  check(MC(mc_model_load)(argv[2], NULL, &model, &error), error);
  size_t size = count * MC(mc_model_embed_dim)(model, NULL);
  float *vectors = malloc(size * sizeof *vectors);
  check(MC(mc_embed_batch)(model, texts, NULL, count, NULL, vectors, size, &error), error);
  double sum = 0;
  for (size_t i = 0; i < size; i++) sum += vectors[i];
  printf("%.9g\n", sum);
  fflush(stdout);
  getchar();
  return 0;
}
