/* Finds the lines of a text file that are nearest in meaning: search MODEL FILE [QUERY …]; without a query, one a line of stdin.
 *
 *   search models/tiny-embed examples/data/standard_library.txt "How do I append an element to a vector?"
 */
#include <metal_candle.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { HITS = 3 };

static mc_error *error; /* of the last call that failed */

static void check(mc_status status) {
    if (status == MC_OK) return;
    fprintf(stderr, "search: %s: %s\n", mc_status_name(status), error ? mc_error_details(error) : "");
    mc_error_free(error);
    exit(1);
}

static void *grown(void *memory, size_t bytes) {
    memory = realloc(memory, bytes);
    if (memory == NULL) {
        fprintf(stderr, "search: out of memory\n");
        exit(1);
    }
    return memory;
}

/* The next line without its end, in memory of its own; NULL behind the last. */
static char *read_line(FILE *file) {
    char *line = NULL;
    size_t len = 0;
    for (int c = getc(file); c != EOF; c = getc(file)) {
        if (len % 128 == 0) line = grown(line, len + 129);
        if (c == '\n') return line[len] = '\0', line;
        line[len++] = (char)c;
        line[len] = '\0';
    }
    return line;
}

static int32_t show(void *user_data, const mc_progress_event *event) {
    (void)user_data;
    fprintf(stderr, "\r%llu of %llu lines%s", (unsigned long long)event->done, (unsigned long long)event->total,
            event->done == event->total ? "\n" : "");
    return MC_CONTINUE;
}

int main(int argc, char **argv) {
    if (argc < 3) return fprintf(stderr, "usage: search MODEL FILE [QUERY ...]\n"), 2;

    mc_model *model = NULL;
    check(mc_model_load(argv[1], NULL, &model, &error));
    const size_t dim = mc_model_embed_dim(model, NULL);

    FILE *file = fopen(argv[2], "rb");
    if (file == NULL) return perror(argv[2]), 1;
    char **lines = NULL;
    size_t count = 0;
    for (char *line; (line = read_line(file)) != NULL;) {
        if (*line == '\0') {
            free(line);
            continue;
        }
        if (count % 1024 == 0) lines = grown(lines, (count + 1024) * sizeof *lines);
        lines[count++] = line;
    }
    fclose(file);
    if (count == 0) return fprintf(stderr, "search: %s: no lines\n", argv[2]), 1;

    /* [index] */
    /* Many models have a prompt for what is searched and another for what is searched for. */
    mc_embed_options *options = mc_embed_options_new();
    mc_embed_options_set_prompt_name(options, "document");
    mc_embed_options_set_progress(options, show, NULL);
    float *index = grown(NULL, count * dim * sizeof *index);
    check(mc_embed_batch(model, (const char *const *)lines, NULL, count, options, index, count * dim, &error));
    mc_embed_options_set_prompt_name(options, "query");
    mc_embed_options_set_progress(options, NULL, NULL);
    /* [index] */

    float *query = grown(NULL, dim * sizeof *query);
    const size_t hits = count < HITS ? count : HITS;
    for (int i = 3;; i++) {
        char *text = argc > 3 ? (i < argc ? argv[i] : NULL) : read_line(stdin);
        if (text == NULL) break;
        /* [nearest] */
        size_t found[HITS];
        float scores[HITS];
        check(mc_embed(model, text, strlen(text), options, query, dim, &error));
        check(mc_similarity_top_k(mc_model_similarity(model), query, 1, index, count, dim, hits, found, scores, &error));
        printf("%s\n", text);
        for (size_t hit = 0; hit < hits; hit++) printf("  %.3f  %s\n", scores[hit], lines[found[hit]]);
        /* [nearest] */
        if (argc <= 3) free(text);
    }

    for (size_t i = 0; i < count; i++) free(lines[i]);
    free(lines);
    free(index);
    free(query);
    mc_embed_options_free(options);
    mc_model_free(model);
    return 0;
}
