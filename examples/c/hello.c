/* The shortest program, to be run at the top of the repository: a text and how a small model goes on with it. */
#include <metal_candle.h>

#include <stdio.h>

/* [hello] */
int main(void) {
    mc_model *model = NULL;
    mc_generation *answer = NULL;
    mc_error *error = NULL;
    mc_status status = mc_model_load("models/tiny-coder", NULL, &model, &error);
    if (status == MC_OK) status = mc_generate(model, "fn main", 7, NULL, &answer, &error);
    if (status == MC_OK) {
        puts(mc_generation_text(answer));
    } else {
        fprintf(stderr, "%s\n", mc_error_message(error));
    }
    mc_generation_free(answer);
    mc_model_free(model);
    mc_error_free(error);
    return status == MC_OK ? 0 : 1;
}
/* [hello] */
