/* Teaches a model facts, and shows that only its adapter knows them: finetune [MODEL [EXAMPLES [ADAPTER]]]
 *
 *   finetune models/tiny-coder examples/data/facts.jsonl build/velmora
 *
 * MODEL is a directory, EXAMPLES a file of JSON lines. ADAPTER, if given, is the directory that the adapter is saved to, in the
 * format of PEFT. Ctrl-C ends the training early and keeps what was learned.
 */
#include <metal_candle.h>

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const facts[] = {"What is the bird of Velmora?", "Why are the doors in Tarn Hollow blue?",
                                    "How do you bake brakka?"};
static const char *const old_questions[] = {"What does `Vec::push` do?", "What is `Duration::as_secs`?"};

enum { EPOCHS = 20, BATCH_SIZE = 4, WARMUP_STEPS = 8 };

static mc_error *error; /* of the last call that failed */
static volatile sig_atomic_t stopped;

static void check(mc_status status) {
    if (status == MC_OK) return;
    fprintf(stderr, "finetune: %s: %s\n", mc_status_name(status), error ? mc_error_details(error) : "");
    mc_error_free(error);
    exit(1);
}

static void stop(int signal_number) {
    (void)signal_number;
    stopped = 1;
}

static int32_t show(void *user_data, const mc_train_event *event) {
    (void)user_data;
    fprintf(stderr, "\rstep %llu/%llu  loss %.4f  learning rate %.2e  %.0f tokens/s  ", (unsigned long long)event->step,
            (unsigned long long)event->total_steps, event->loss, event->learning_rate, event->tokens_per_second);
    return stopped ? MC_STOP : MC_CONTINUE;
}

static int32_t print_piece(void *user_data, const mc_token_event *event) {
    (void)user_data;
    fwrite(event->text, 1, event->text_len, stdout);
    return MC_CONTINUE;
}

/* Asks each question by itself: no answer sees another one. */
static void ask(mc_session *session, const char *title, const char *const *questions, size_t count) {
    mc_generate_options *options = mc_generate_options_new();
    mc_generate_options_set_max_tokens(options, 64);
    printf("\n%s\n", title);
    for (size_t i = 0; i < count; i++) {
        /* [ask] */
        mc_chat *chat = mc_chat_new();
        check(mc_chat_add(chat, "user", questions[i], strlen(questions[i]), &error));
        check(mc_session_set_chat(session, chat, NULL, &error));
        printf("  %s\n    ", questions[i]);
        check(mc_session_generate_stream(session, options, print_piece, NULL, NULL, &error));
        printf("\n");
        mc_chat_free(chat);
        /* [ask] */
    }
    mc_generate_options_free(options);
}

/* The adapter after all epochs, or as far as it came. */
static mc_lora *train(const mc_model *model, const char *examples) {
    /* [dataset] */
    mc_dataset *dataset = NULL;
    check(mc_dataset_load_jsonl(examples, &dataset, &error));
    /* [dataset] */

    /* [train] */
    mc_lora_config *config = mc_lora_config_new();
    mc_lora_config_set_rank(config, 8);
    mc_lora_config_set_alpha(config, 16);

    /* A large rate: the model is small, and it is to know the examples by heart. */
    mc_train_options *options = mc_train_options_new();
    mc_train_options_set_learning_rate(options, 2e-3);
    mc_train_options_set_schedule(options, MC_SCHEDULE_COSINE, WARMUP_STEPS, 0); /* 0: as long as the training */
    mc_train_options_set_epochs(options, EPOCHS);
    mc_train_options_set_batch_size(options, BATCH_SIZE);

    mc_lora_trainer *trainer = NULL;
    mc_lora *lora = NULL;
    check(mc_lora_trainer_new(model, config, options, &trainer, &error));
    check(mc_lora_trainer_train(trainer, dataset, NULL, show, NULL, &error));
    fprintf(stderr, "\n");
    check(mc_lora_trainer_adapter(trainer, &lora, &error));
    /* [train] */

    mc_lora_trainer_free(trainer);
    mc_train_options_free(options);
    mc_lora_config_free(config);
    mc_dataset_free(dataset);
    return lora;
}

int main(int argc, char **argv) {
    const char *path = argc > 1 ? argv[1] : "models/tiny-coder";
    const char *examples = argc > 2 ? argv[2] : "examples/data/facts.jsonl";
    if (argc > 4 || path[0] == '-') return fprintf(stderr, "usage: finetune [MODEL [EXAMPLES [ADAPTER]]]\n"), 2;
    signal(SIGINT, stop);

    mc_model *model = NULL;
    mc_session *session = NULL;
    check(mc_model_load(path, NULL, &model, &error));
    check(mc_session_new(model, 0, &session, &error));
    mc_lora *lora = train(model, examples);

    check(mc_session_set_lora(session, lora, 1.0f, &error));
    ask(session, "With the adapter:", facts, sizeof facts / sizeof *facts);
    check(mc_session_set_lora(session, NULL, 0.0f, &error));
    ask(session, "Without it:", facts, sizeof facts / sizeof *facts);
    ask(session, "And what it knew before:", old_questions, sizeof old_questions / sizeof *old_questions);
    if (argc > 3) check(mc_lora_save(lora, argv[3], &error));

    mc_lora_free(lora);
    mc_session_free(session);
    mc_model_free(model);
    if (mc_live_objects() != 0) return fprintf(stderr, "finetune: %zu objects were not freed\n", mc_live_objects()), 1;
    return 0;
}
