/* The shortest program, to be run at the top of the repository: how a small model goes on with a text, piece by piece. */
/* [hello] */
#include <metal_candle.h>
#include <stdio.h>

static int32_t print_piece(void *user_data, const mc_token_event *event) {
    (void)user_data;
    return fwrite(event->text, 1, event->text_len, stdout) == event->text_len ? MC_CONTINUE : MC_STOP;
}

int main(void) {
    mc_model *model = NULL;
    mc_error *error = NULL;
    mc_status status = mc_model_load("models/tiny-coder", NULL, &model, &error);
    if (status == MC_OK) status = mc_generate_stream(model, "fn main", 7, NULL, print_piece, NULL, NULL, &error);
    if (status != MC_OK) fprintf(stderr, "%s\n", mc_error_details(error));
    mc_model_free(model);
    mc_error_free(error);
    return status != MC_OK;
}
/* [hello] */
