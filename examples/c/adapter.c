/* Asks a model with an adapter, and writes a model that has it merged in: adapter MODEL ADAPTER QUESTION [MERGED]
 *
 *   finetune models/tiny-coder examples/data/facts.jsonl build/velmora
 *   adapter models/tiny-coder build/velmora "What is the bird of Velmora?" build/merged
 *
 * ADAPTER is a directory in the format of PEFT, MERGED one that does not exist yet.
 */
#include <metal_candle.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static mc_error *error; /* of the last call that failed */

static void check(mc_status status) {
    if (status == MC_OK) return;
    fprintf(stderr, "adapter: %s: %s\n", mc_status_name(status), error ? mc_error_details(error) : "");
    mc_error_free(error);
    exit(1);
}

static void ask(const mc_model *model, const mc_lora *lora, const char *question) {
    mc_session *session = NULL;
    mc_generation *answer = NULL;
    mc_chat *chat = mc_chat_new();
    check(mc_chat_add(chat, "user", question, strlen(question), &error));
    check(mc_session_new(model, 0, &session, &error));
    /* [attach] */
    check(mc_session_set_lora(session, lora, 1.0f, &error)); /* of this session alone; NULL takes it off again */
    check(mc_session_set_chat(session, chat, NULL, &error));
    check(mc_session_generate_stream(session, NULL, NULL, NULL, &answer, &error));
    /* [attach] */
    printf("%s\n", mc_generation_text(answer));
    mc_generation_free(answer);
    mc_session_free(session);
    mc_chat_free(chat);
}

int main(int argc, char **argv) {
    if (argc < 4 || argc > 5) return fprintf(stderr, "usage: adapter MODEL ADAPTER QUESTION [MERGED]\n"), 2;
    mc_model *model = NULL;
    check(mc_model_load(argv[1], NULL, &model, &error));
    /* [lora] */
    mc_lora *lora = NULL;
    check(mc_lora_load(model, argv[2], &lora, &error));
    printf("rank %zu, %llu numbers\n", mc_lora_rank(lora), (unsigned long long)mc_lora_parameter_count(lora));
    /* [lora] */
    ask(model, lora, argv[3]);
    if (argc > 4) {
        /* [merge] */
        mc_model *merged = NULL;
        check(mc_model_merge(model, lora, 1.0f, &merged, &error));
        check(mc_model_save(merged, argv[4], NULL, NULL, NULL, &error));
        mc_model_free(merged);
        /* [merge] */
    }
    mc_lora_free(lora);
    mc_model_free(model);
    return 0;
}
