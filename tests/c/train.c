/* Section `train`: adapters trained on tokens and on datasets, stopped, saved and resumed. */
#include "check.h"

static mc_model *model;

static const uint32_t tokens[] = {5, 6, 7, 1, 2, 3, 4, 8, 9};
static const size_t offsets[] = {0, 3, 9};

static mc_lora_config *small(void) {
    mc_lora_config *config = mc_lora_config_new();
    mc_lora_config_set_rank(config, 2);
    mc_lora_config_set_alpha(config, 4.0);
    mc_lora_config_set_dropout(config, 0.1);
    mc_lora_config_set_seed(config, 7);
    mc_lora_config_add_target(config, "v_proj");
    mc_lora_config_add_target(config, "up_proj");
    return config;
}

static mc_train_options *fast(void) {
    mc_train_options *options = mc_train_options_new();
    mc_train_options_set_learning_rate(options, 0.01);
    mc_train_options_set_batch_size(options, 2);
    return options;
}

static mc_lora_trainer *new_trainer(const mc_train_options *options) {
    mc_lora_trainer *trainer = NULL;
    mc_lora_config *config = small();
    EXPECT(MC_OK, mc_lora_trainer_new(model, config, options, &trainer, &err));
    mc_lora_config_free(config);
    return trainer;
}

static mc_dataset *examples(void) {
    mc_dataset *dataset = mc_dataset_new();
    for (int i = 0; i < 6; i++) {
        char prompt[64], completion[64];
        snprintf(prompt, sizeof prompt, "What is %d and %d?", i, i);
        snprintf(completion, sizeof completion, " It is %d.", 2 * i);
        EXPECT(MC_OK, mc_dataset_add_completion(dataset, prompt, strlen(prompt), completion, strlen(completion), &err));
    }
    return dataset;
}

static float step(mc_lora_trainer *trainer) {
    float loss = NAN;
    EXPECT(MC_OK, mc_lora_trainer_train_step(trainer, tokens, NULL, offsets, 2, &loss, &err));
    return loss;
}

static float evaluate(mc_lora_trainer *trainer) {
    float loss = NAN;
    EXPECT(MC_OK, mc_lora_trainer_eval_step(trainer, tokens, NULL, offsets, 2, &loss, &err));
    return loss;
}

/* What a session with the adapter of a trainer scores highest. */
static float first_logit(const mc_lora_trainer *trainer) {
    static float logits[4096];
    mc_session *session = NULL;
    mc_lora *lora = NULL;
    EXPECT(MC_OK, mc_session_new(model, 0, &session, &err));
    EXPECT(MC_OK, mc_session_append_tokens(session, tokens, 9, NULL, &err));
    if (trainer != NULL) {
        EXPECT(MC_OK, mc_lora_trainer_adapter(trainer, &lora, &err));
        CHECK(mc_lora_rank(lora) == 2 && mc_lora_alpha(lora) == 4.0f);
        EXPECT(MC_OK, mc_session_set_lora(session, lora, 1.0f, &err));
        mc_lora_free(lora);
    }
    EXPECT(MC_OK, mc_session_logits(session, logits, mc_model_vocab_size(model), &err));
    mc_session_free(session);
    return logits[0];
}

static void steps_lower_the_loss_and_the_adapter_follows(void) {
    mc_train_options *options = fast();
    mc_lora_trainer *trainer = new_trainer(options);
    mc_train_options_free(options);
    float plain = first_logit(NULL), before = evaluate(trainer), loss = 0, grad_norm = 1;
    double learning_rate = 1;
    uint64_t last = 1;
    CHECK(first_logit(trainer) == plain && mc_lora_trainer_step_count(trainer) == 0);
    EXPECT(MC_OK, mc_lora_trainer_last_update(trainer, &last, &learning_rate, &grad_norm, &err));
    CHECK(last == 0 && learning_rate == 0 && grad_norm == 0);
    for (int i = 0; i < 4; i++) {
        loss = step(trainer);
        CHECK(isfinite(loss) && mc_lora_trainer_step_count(trainer) == (uint64_t)i + 1);
        EXPECT(MC_OK, mc_lora_trainer_last_update(trainer, &last, &learning_rate, &grad_norm, &err));
        CHECK(last == (uint64_t)i + 1 && learning_rate == 0.01 && grad_norm > 0);
    }
    CHECK(loss < before && evaluate(trainer) < before);
    CHECK(first_logit(trainer) != plain && first_logit(NULL) == plain);
    mc_lora_trainer_free(trainer);
}

static void the_mask_says_what_is_learnt(void) {
    static const uint8_t last[] = {1, 0, 0, 0, 0, 0, 0, 0, 1}, none[9] = {1};
    mc_lora_trainer *trainer = new_trainer(NULL);
    float all = evaluate(trainer), one = 0;
    EXPECT(MC_OK, mc_lora_trainer_eval_step(trainer, tokens, last, offsets, 2, &one, &err));
    CHECK(one != all);
    /* The first token of a sequence has nothing before it. */
    EXPECT_ERROR(MC_ERROR_INVALID_ARGUMENT, "loss_mask", mc_lora_trainer_train_step(trainer, tokens, none, offsets, 2, &one, &err));
    mc_lora_trainer_free(trainer);
}

static void wrong_micro_batches_are_refused_by_name(void) {
    static const size_t falling[] = {0, 5, 3}, late[] = {1, 9}, alone[] = {0, 1};
    static const uint32_t beyond[] = {1, 4096};
    static const size_t two[] = {0, 2};
    float loss = 42;
    mc_lora_trainer *trainer = new_trainer(NULL);
    EXPECT_ERROR(MC_ERROR_INVALID_ARGUMENT, "offsets[2]: expected more than 5, found 3", mc_lora_trainer_train_step(trainer, tokens, NULL, falling, 2, &loss, &err));
    EXPECT_ERROR(MC_ERROR_INVALID_ARGUMENT, "offsets[0]: expected 0, found 1", mc_lora_trainer_train_step(trainer, tokens, NULL, late, 1, &loss, &err));
    EXPECT_ERROR(MC_ERROR_INVALID_ARGUMENT, "tokens[1]: expected an id below 4096, found 4096", mc_lora_trainer_train_step(trainer, beyond, NULL, two, 1, &loss, &err));
    EXPECT_ERROR(MC_ERROR_INVALID_ARGUMENT, "loss_mask", mc_lora_trainer_train_step(trainer, tokens, NULL, alone, 1, &loss, &err));
    EXPECT_ERROR(MC_ERROR_INVALID_ARGUMENT, "offsets", mc_lora_trainer_train_step(trainer, tokens, NULL, offsets, 0, &loss, &err));
    EXPECT_ERROR(MC_ERROR_INVALID_ARGUMENT, "sequences", mc_lora_trainer_train_step(trainer, tokens, NULL, offsets, SIZE_MAX, &loss, &err));
    EXPECT(MC_ERROR_INVALID_ARGUMENT, mc_lora_trainer_train_step(trainer, tokens, NULL, offsets, SIZE_MAX / 2, &loss, &err));
    EXPECT_ERROR(MC_ERROR_INVALID_ARGUMENT, "tokens", mc_lora_trainer_train_step(trainer, null(), NULL, offsets, 2, &loss, &err));
    EXPECT_ERROR(MC_ERROR_INVALID_ARGUMENT, "loss", mc_lora_trainer_train_step(trainer, tokens, NULL, offsets, 2, null(), &err));
    CHECK(loss == 42 && mc_lora_trainer_step_count(trainer) == 0);
    mc_lora_trainer_free(trainer);
}

static void expect_bad(const char *fragment, mc_lora_config *config, mc_train_options *options) {
    mc_lora_trainer *trainer = NULL;
    uint64_t bytes = 42;
    EXPECT_ERROR(MC_ERROR_INVALID_ARGUMENT, fragment, mc_lora_trainer_new(model, config, options, &trainer, &err));
    EXPECT_ERROR(MC_ERROR_INVALID_ARGUMENT, fragment, mc_model_estimate_training_memory(model, config, options, &bytes, &err));
    CHECK(trainer == NULL && bytes == 42);
    mc_lora_config_free(config);
    mc_train_options_free(options);
}

static void bad_options_are_reported_by_their_first_use(void) {
    mc_lora_config *config;
    mc_train_options *options;
#define BAD_CONFIG(fragment, call) (config = mc_lora_config_new(), call, expect_bad(fragment, config, NULL))
#define BAD_OPTION(fragment, call) (options = mc_train_options_new(), call, expect_bad(fragment, NULL, options))
    BAD_CONFIG("rank: expected 1 to 8192, found 0", mc_lora_config_set_rank(config, 0));
    BAD_CONFIG("alpha: ", mc_lora_config_set_alpha(config, (float)NAN));
    BAD_CONFIG("dropout: ", mc_lora_config_set_dropout(config, 1.0));
    BAD_CONFIG("targets: ", mc_lora_config_add_target(config, "no_such_proj"));
    BAD_CONFIG("lora: expected mc_lora", mc_lora_config_set_initial(config, (const mc_lora *)(const void *)config));
    BAD_OPTION("learning_rate: expected 0 to 1, found -0.5", mc_train_options_set_learning_rate(options, -0.5));
    BAD_OPTION("weight_decay: ", mc_train_options_set_weight_decay(options, (float)INFINITY));
    BAD_OPTION("beta2: expected at least 0 and below 1, found 1", mc_train_options_set_adam_betas(options, 0.9, 1.0));
    BAD_OPTION("epsilon: ", mc_train_options_set_adam_epsilon(options, 0.0));
    BAD_OPTION("grad_clip: ", mc_train_options_set_grad_clip(options, -1.0));
    BAD_OPTION("grad_accumulation: ", mc_train_options_set_grad_accumulation(options, 0));
    BAD_OPTION("batch_size: ", mc_train_options_set_batch_size(options, 0));
    BAD_OPTION("epochs: ", mc_train_options_set_epochs(options, 0));
    BAD_OPTION("max_length: ", mc_train_options_set_max_length(options, 1));
    BAD_OPTION("max_length: expected at most 1024", mc_train_options_set_max_length(options, 1025));
    BAD_OPTION("warmup_steps: ", mc_train_options_set_schedule(options, MC_SCHEDULE_LINEAR, UINT64_MAX, 0));
    BAD_OPTION("schedule: expected a value of mc_schedule, found 9", mc_train_options_set_schedule(options, (mc_schedule)9, 0, 0));
    BAD_OPTION("weighting: expected a value of mc_weighting, found 9", mc_train_options_set_weighting(options, (mc_weighting)9));
    BAD_OPTION("checkpoint: expected UTF-8", mc_train_options_set_checkpoint(options, "\xff", 0));
}

static void the_embedding_is_a_target_too(void) {
    mc_lora_config *config = mc_lora_config_new();
    mc_lora_trainer *trainer = NULL;
    mc_lora_config_add_target(config, "embed_tokens");
    EXPECT(MC_OK, mc_lora_trainer_new(model, config, NULL, &trainer, &err));
    mc_lora_trainer_free(trainer);
    mc_lora_config_free(config);
}

struct told {
    mc_lora_trainer *trainer;
    mc_lora_trainer *to_free;
    uint64_t stop_after;
    uint64_t steps;
    float first_loss, last_loss, last_eval;
    bool consistent;
};

static int32_t tell(void *user_data, const mc_train_event *event) {
    struct told *told = user_data;
    float loss;
    mc_lora *lora = NULL;
    told->steps++;
    if (told->steps == 1) told->first_loss = event->loss;
    told->last_loss = event->loss;
    told->last_eval = event->eval_loss;
    bool last = event->step == event->total_steps;
    told->consistent = event->struct_size >= sizeof *event && event->step >= told->steps && event->epoch >= 1 && event->loss > 0 &&
        event->learning_rate > 0 && event->grad_norm > 0 && event->tokens_per_second > 0 && event->target_tokens > 0 &&
        event->truncated == 0 && event->skipped == 0 && (last || isnan(event->eval_loss)) && (!event->is_best || last);
    if (told->trainer != NULL) {
        EXPECT(MC_ERROR_BUSY, mc_lora_trainer_train_step(told->trainer, tokens, NULL, offsets, 2, &loss, &err));
        EXPECT(MC_ERROR_BUSY, mc_lora_trainer_eval_step(told->trainer, tokens, NULL, offsets, 2, &loss, &err));
        EXPECT(MC_ERROR_BUSY, mc_lora_trainer_adapter(told->trainer, &lora, &err));
        EXPECT(MC_ERROR_BUSY, mc_lora_trainer_save(told->trainer, "/tmp", &err));
        CHECK(lora == NULL && mc_lora_trainer_step_count(told->trainer) == event->step);
    }
    mc_lora_trainer_free(told->to_free);
    told->to_free = NULL;
    return told->stop_after != 0 && told->steps >= told->stop_after ? MC_STOP : MC_CONTINUE;
}

static void a_training_tells_its_steps_and_goes_on_where_it_was_stopped(void) {
    mc_dataset *dataset = examples();
    mc_train_options *options = fast();
    mc_train_options_set_epochs(options, 3);
    mc_train_options_set_schedule(options, MC_SCHEDULE_COSINE, 2, 0);
    mc_lora_trainer *whole = new_trainer(options), *stopped = new_trainer(options);
    struct told all = {0}, part = {0};
    all.trainer = whole;
    EXPECT(MC_OK, mc_lora_trainer_train(whole, dataset, dataset, tell, &all, &err));
    CHECK(all.steps == 9 && all.consistent && all.last_loss < all.first_loss && all.last_eval < all.first_loss);
    EXPECT(MC_OK, mc_lora_trainer_train(whole, dataset, dataset, tell, &all, &err));
    CHECK(all.steps == 9);

    part.stop_after = 4;
    EXPECT(MC_OK, mc_lora_trainer_train(stopped, dataset, dataset, tell, &part, &err));
    CHECK(part.steps == 4 && mc_lora_trainer_step_count(stopped) == 4);
    part.stop_after = 0;
    EXPECT(MC_OK, mc_lora_trainer_train(stopped, dataset, dataset, tell, &part, &err));
    CHECK(part.steps == 9 && first_logit(stopped) == first_logit(whole));
    mc_train_options_free(options);
    mc_lora_trainer_free(whole);
    mc_lora_trainer_free(stopped);
    mc_dataset_free(dataset);
}

static void a_checkpoint_goes_on_as_if_nothing_had_been(void) {
    char directory[] = "/tmp/metal-candle-train-XXXXXX", path[96];
    CHECK(mkdtemp(directory) != NULL);
    mc_dataset *dataset = examples();
    mc_train_options *options = fast();
    mc_train_options_set_epochs(options, 2);
    mc_train_options_set_checkpoint(options, directory, 2);
    mc_lora_trainer *trainer = new_trainer(options), *resumed = NULL;
    struct told told = {0};
    told.stop_after = 3;
    EXPECT(MC_OK, mc_lora_trainer_train(trainer, dataset, NULL, tell, &told, &err));
    EXPECT(MC_OK, mc_lora_trainer_resume(model, directory, NULL, &resumed, &err)); /* written by the stop */
    CHECK(mc_lora_trainer_step_count(resumed) == 3);
    EXPECT(MC_OK, mc_lora_trainer_train(trainer, dataset, NULL, NULL, NULL, &err));
    EXPECT(MC_OK, mc_lora_trainer_train(resumed, dataset, NULL, NULL, NULL, &err));
    CHECK(mc_lora_trainer_step_count(resumed) == 6 && first_logit(trainer) == first_logit(resumed));
    mc_lora_trainer_free(resumed);

    EXPECT(MC_OK, mc_lora_trainer_save(trainer, directory, &err));
    mc_train_options_set_batch_size(options, 3);
    EXPECT_ERROR(MC_ERROR_INVALID_ARGUMENT, "batch_size: expected 2, as in the checkpoint, found 3",
                 mc_lora_trainer_resume(model, directory, options, &resumed, &err));
    CHECK(resumed == NULL);
    mc_lora *lora = NULL;
    EXPECT(MC_OK, mc_lora_load(model, directory, &lora, &err)); /* for PEFT it is an adapter */
    mc_lora_config *config = mc_lora_config_new();
    mc_lora_config_set_initial(config, lora);
    mc_lora_free(lora);
    EXPECT(MC_OK, mc_lora_trainer_new(model, config, NULL, &resumed, &err));
    CHECK(first_logit(resumed) == first_logit(trainer));
    mc_lora_config_free(config);
    mc_lora_trainer_free(resumed);
    EXPECT(MC_ERROR_NOT_FOUND, mc_lora_trainer_resume(model, "/tmp/no/such/place", NULL, &resumed, &err));
    CHECK(resumed == NULL);

    mc_train_options_free(options);
    mc_lora_trainer_free(trainer);
    mc_dataset_free(dataset);
    static const char *const files[] = {"adapter_config.json", "adapter_model.safetensors", "training_state.safetensors"};
    for (size_t i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "%s/%s", directory, files[i]);
        CHECK(remove(path) == 0);
    }
    CHECK(rmdir(directory) == 0); /* nothing else was left there */
}

/* The learning rates of a training, and its last step as each step tells it. */
struct rates {
    double of[16];
    uint64_t count, total;
};

static int32_t note(void *user_data, const mc_train_event *event) {
    struct rates *rates = user_data;
    rates->of[event->step - 1] = event->learning_rate;
    rates->count++;
    rates->total = event->total_steps;
    return MC_CONTINUE;
}

static void most_steps_end_a_training_and_leave_its_schedule(void) {
    char directory[] = "/tmp/metal-candle-steps-XXXXXX", path[96];
    CHECK(mkdtemp(directory) != NULL);
    mc_dataset *dataset = examples();
    mc_train_options *options = fast();
    struct rates all = {{0}, 0, 0}, part = {{0}, 0, 0};
    mc_train_options_set_epochs(options, 3);
    mc_train_options_set_schedule(options, MC_SCHEDULE_COSINE, 2, 0);
    mc_lora_trainer *whole = new_trainer(options), *resumed = NULL;
    mc_train_options_set_checkpoint(options, directory, 0);
    mc_train_options_set_max_steps(options, 4); /* in the middle of an epoch */
    mc_lora_trainer *first = new_trainer(options);
    EXPECT(MC_OK, mc_lora_trainer_train(whole, dataset, NULL, note, &all, &err));
    CHECK(all.count == 9 && all.total == 9);
    EXPECT(MC_OK, mc_lora_trainer_train(first, dataset, NULL, note, &part, &err));
    CHECK(part.count == 4 && part.total == 4 && mc_lora_trainer_step_count(first) == 4);
    EXPECT(MC_OK, mc_lora_trainer_train(first, dataset, NULL, note, &part, &err));
    CHECK(part.count == 4); /* it is at its end */
    mc_lora_trainer_free(first);

    /* The checkpoint has the number too; with another one the training goes on as if it had not ended. */
    EXPECT(MC_OK, mc_lora_trainer_resume(model, directory, NULL, &resumed, &err));
    EXPECT(MC_OK, mc_lora_trainer_train(resumed, dataset, NULL, note, &part, &err));
    CHECK(part.count == 4 && mc_lora_trainer_step_count(resumed) == 4);
    mc_lora_trainer_free(resumed);
    mc_train_options_set_max_steps(options, 7);
    EXPECT(MC_OK, mc_lora_trainer_resume(model, directory, options, &resumed, &err));
    EXPECT(MC_OK, mc_lora_trainer_train(resumed, dataset, NULL, note, &part, &err));
    CHECK(part.count == 7 && part.total == 7);
    mc_lora_trainer_free(resumed);
    mc_train_options_set_max_steps(options, 100); /* more than there are */
    EXPECT(MC_OK, mc_lora_trainer_resume(model, directory, options, &resumed, &err));
    EXPECT(MC_OK, mc_lora_trainer_train(resumed, dataset, NULL, note, &part, &err));
    CHECK(part.count == 9 && part.total == 9);
    for (int i = 0; i < 9; i++) CHECK(part.of[i] == all.of[i]);
    CHECK(all.of[8] > 0 && all.of[8] < all.of[1] && first_logit(resumed) == first_logit(whole));
    mc_lora_trainer_free(resumed);
    mc_lora_trainer_free(whole);
    mc_train_options_free(options);
    mc_dataset_free(dataset);
    static const char *const files[] = {"adapter_config.json", "adapter_model.safetensors", "training_state.safetensors"};
    for (size_t i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "%s/%s", directory, files[i]);
        CHECK(remove(path) == 0);
    }
    CHECK(rmdir(directory) == 0);
}

static void a_place_for_checkpoints_is_tried_before_training(void) {
    mc_dataset *dataset = examples();
    mc_train_options *options = fast();
    mc_train_options_set_checkpoint(options, "/dev/null/checkpoints", 0);
    mc_lora_trainer *trainer = new_trainer(options);
    struct told told = {0};
    EXPECT_ERROR(MC_ERROR_IO, "/dev/null/checkpoints", mc_lora_trainer_train(trainer, dataset, NULL, tell, &told, &err));
    CHECK(told.steps == 0 && mc_lora_trainer_step_count(trainer) == 0);
    mc_lora_trainer_free(trainer);
    mc_train_options_free(options);
    mc_dataset_free(dataset);
}

static void a_callback_may_free_its_trainer(void) {
    mc_dataset *dataset = examples();
    mc_lora_trainer *trainer = new_trainer(NULL);
    struct told told = {0};
    told.to_free = trainer;
    EXPECT(MC_OK, mc_lora_trainer_train(trainer, dataset, NULL, tell, &told, &err));
    CHECK(told.steps == 2 && told.consistent);
    mc_dataset_free(dataset);
}

static void a_cancel_leaves_the_trainer_usable(void) {
    mc_dataset *dataset = examples();
    mc_cancel *cancel = mc_cancel_new();
    mc_train_options *options = fast();
    mc_train_options_set_cancel(options, cancel);
    mc_lora_trainer *trainer = new_trainer(options);
    float loss = 42;
    mc_cancel_trigger(cancel);
    EXPECT(MC_CANCELLED, mc_lora_trainer_train(trainer, dataset, NULL, NULL, NULL, &err));
    EXPECT(MC_CANCELLED, mc_lora_trainer_train_step(trainer, tokens, NULL, offsets, 2, &loss, &err));
    CHECK(loss == 42 && mc_lora_trainer_step_count(trainer) == 0);
    mc_cancel_reset(cancel);
    EXPECT(MC_OK, mc_lora_trainer_train(trainer, dataset, NULL, NULL, NULL, &err));
    CHECK(mc_lora_trainer_step_count(trainer) == 3);
    mc_cancel_free(cancel);
    mc_train_options_free(options);
    mc_lora_trainer_free(trainer);
    mc_dataset_free(dataset);
}

static void datasets_that_do_not_fit_are_refused(void) {
    mc_dataset *empty = mc_dataset_new(), *dataset = examples();
    mc_lora_trainer *trainer = new_trainer(NULL);
    struct told told = {0};
    told.stop_after = 1;
    EXPECT_ERROR(MC_ERROR_INVALID_ARGUMENT, "train: ", mc_lora_trainer_train(trainer, empty, NULL, NULL, NULL, &err));
    EXPECT_ERROR(MC_ERROR_INVALID_ARGUMENT, "eval: ", mc_lora_trainer_train(trainer, dataset, empty, NULL, NULL, &err));
    EXPECT(MC_OK, mc_lora_trainer_train(trainer, dataset, NULL, tell, &told, &err));
    EXPECT(MC_OK, mc_dataset_add_text(dataset, "more", 4, &err));
    EXPECT_ERROR(MC_ERROR_MISMATCH, "train: ", mc_lora_trainer_train(trainer, dataset, NULL, NULL, NULL, &err));
    mc_dataset_free(empty);
    mc_dataset_free(dataset);
    mc_lora_trainer_free(trainer);
}

static void memory_is_estimated_before_it_is_needed(void) {
    uint64_t usual = 0, more = 0;
    mc_train_options *options = mc_train_options_new();
    EXPECT(MC_OK, mc_model_estimate_training_memory(model, NULL, NULL, &usual, &err));
    mc_train_options_set_gradient_checkpointing(options, false);
    EXPECT(MC_OK, mc_model_estimate_training_memory(model, NULL, options, &more, &err));
    CHECK(usual > 0 && more > usual);
    mc_train_options_free(options);
}

int main(int argc, char **argv) {
    begin(argc, argv);
    model = load_model();
    RUN(steps_lower_the_loss_and_the_adapter_follows);
    RUN(the_mask_says_what_is_learnt);
    RUN(wrong_micro_batches_are_refused_by_name);
    RUN(bad_options_are_reported_by_their_first_use);
    RUN(the_embedding_is_a_target_too);
    RUN(a_training_tells_its_steps_and_goes_on_where_it_was_stopped);
    RUN(a_checkpoint_goes_on_as_if_nothing_had_been);
    RUN(most_steps_end_a_training_and_leave_its_schedule);
    RUN(a_place_for_checkpoints_is_tried_before_training);
    RUN(a_callback_may_free_its_trainer);
    RUN(a_cancel_leaves_the_trainer_usable);
    RUN(datasets_that_do_not_fit_are_refused);
    RUN(memory_is_estimated_before_it_is_needed);
    mc_model_free(model);
    return end();
}
