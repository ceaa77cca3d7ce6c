/* How well texts answer a query, by a model that reads both at once: rerank MODEL QUERY TEXT …
 *
 *   rerank models/my-reranker "How do I sort a list?" "Sorts the slice in place." "Opens a file."
 */
#include <metal_candle.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static mc_error *error; /* of the last call that failed */

static void check(mc_status status) {
    if (status == MC_OK) return;
    fprintf(stderr, "rerank: %s: %s\n", mc_status_name(status), error ? mc_error_details(error) : "");
    mc_error_free(error);
    exit(1);
}

/* [rerank] */
static void rank(const mc_model *model, const char *query, const char *const *texts, size_t count) {
    float *scores = malloc(count * sizeof *scores);
    if (scores == NULL) exit(1);
    check(mc_rerank(model, query, strlen(query), texts, NULL, count, NULL, scores, count, &error));
    for (size_t i = 0; i < count; i++) printf("%.4f  %s\n", scores[i], texts[i]);
    free(scores);
}
/* [rerank] */

int main(int argc, char **argv) {
    if (argc < 4) return fprintf(stderr, "usage: rerank MODEL QUERY TEXT ...\n"), 2;
    mc_model *model = NULL;
    check(mc_model_load(argv[1], NULL, &model, &error));
    if (!mc_model_supports(model, MC_CAPABILITY_RERANK)) return fprintf(stderr, "rerank: %s is no reranker\n", argv[1]), 1;
    rank(model, argv[2], (const char *const *)argv + 3, (size_t)argc - 3);
    mc_model_free(model);
    return 0;
}
