/* Continues a text as it is made: complete MODEL PROMPT [MAX_TOKENS]
 *
 *   complete models/tiny-coder "fn main() {" 64
 */
#include <metal_candle.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static mc_error *error; /* of the last call that failed */

/* [check] */
static void check(mc_status status) {
    if (status == MC_OK) return;
    fprintf(stderr, "complete: %s: %s\n", mc_status_name(status), error ? mc_error_details(error) : "");
    mc_error_free(error);
    exit(1);
}
/* [check] */

/* [generate] */
static int32_t print_piece(void *user_data, const mc_token_event *event) {
    (void)user_data;
    fwrite(event->text, 1, event->text_len, stdout); /* whole UTF-8 sequences; may be empty */
    fflush(stdout);
    return MC_CONTINUE;
}
/* [generate] */

int main(int argc, char **argv) {
    if (argc < 3) return fprintf(stderr, "usage: complete MODEL PROMPT [MAX_TOKENS]\n"), 2;

    /* [program] */
    mc_model *model = NULL;
    check(mc_model_load(argv[1], NULL, &model, &error));

    mc_generate_options *options = mc_generate_options_new();
    mc_generate_options_set_max_tokens(options, argc > 3 ? strtoul(argv[3], NULL, 10) : 128);

    mc_generation *answer = NULL;
    check(mc_generate_stream(model, argv[2], strlen(argv[2]), options, print_piece, NULL, &answer, &error));

    size_t tokens = mc_generation_tokens_len(answer);
    double seconds = mc_generation_decode_seconds(answer);
    printf("\n");
    fprintf(stderr, "%zu tokens, %.1f tokens/s\n", tokens, seconds > 0 ? (double)tokens / seconds : 0.0);

    mc_generation_free(answer);
    mc_generate_options_free(options);
    mc_model_free(model);
    /* [program] */
    return 0;
}
