// Every operation with an allocation that fails: operations BYTES once|lasting STRIDE. Each goes through its allocations one after
// another (every STRIDE-th of them), and ends with its result, the same as ever, or with MC_ERROR_OUT_OF_MEMORY; and never does it
// end the process. Runs under fail.c.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <metal_candle.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void (*fail_allocations)(size_t number, size_t bytes, int lasting);
static size_t (*failed_allocations)(void);

static size_t fail_number, fail_bytes;
static int fail_lasting;
static mc_error *error;
static mc_model *coder, *embedder;
static char folder[64];

// What an operation found: text, or the bits of numbers.
static char found[4096];
static size_t found_len;

static void note(const void *bytes, size_t len) {
    if (len > sizeof found - found_len) len = sizeof found - found_len;
    memcpy(found + found_len, bytes, len);
    found_len += len;
}

static void on(void) { fail_allocations(fail_number, fail_bytes, fail_lasting); }

#define TRY(call) \
    do { \
        if ((status = (call)) != MC_OK) goto out; \
    } while (0)

static const char prompt[] = "What does `Vec::push` do? And what is a trait, a struct, an iterator?";
#define PROMPT prompt, sizeof prompt - 1

static mc_status load_as(const char *quantization) {
    mc_model *model = NULL;
    mc_model_options *options = mc_model_options_new();
    mc_status status = MC_OK;
    if (quantization != NULL) mc_model_options_set_quantization(options, quantization);
    on();
    TRY(mc_model_load("models/tiny-coder", options, &model, &error));
    size_t vocabulary = mc_model_vocab_size(model);
    note(&vocabulary, sizeof vocabulary);
out:
    mc_model_free(model);
    mc_model_options_free(options);
    return status;
}
static mc_status load(void) { return load_as(NULL); }
static mc_status load_quantised(void) { return load_as("q8_0"); }

static mc_status generate_with(const char *schema) {
    mc_generation *generation = NULL;
    mc_generate_options *options = mc_generate_options_new();
    mc_status status;
    mc_generate_options_set_max_tokens(options, 6);
    if (schema != NULL) mc_generate_options_set_json_schema(options, schema, strlen(schema));
    on();
    TRY(mc_generate(coder, PROMPT, options, &generation, &error));
    note(mc_generation_text(generation), mc_generation_text_len(generation));
out:
    mc_generation_free(generation);
    mc_generate_options_free(options);
    return status;
}
static mc_status generate(void) { return generate_with(NULL); }
static mc_status conform(void) {
    return generate_with("{\"type\": \"object\", \"properties\": {\"a\": {\"type\": \"integer\"}}, \"required\": [\"a\"]}");
}

static mc_status embed(void) {
    static float vectors[3 * 4096];
    const char *texts[] = {"a text", prompt, ""};
    size_t lens[] = {6, sizeof prompt - 1, 0}, len = 3 * mc_model_embed_dim(embedder, NULL);
    mc_status status;
    on();
    TRY(mc_embed_batch(embedder, texts, lens, 3, NULL, vectors, len, &error));
    note(vectors, len * sizeof *vectors);
out:
    return status;
}

static mc_status similarity(void) {
    static float rows[64 * 256];
    size_t indices[64 * 4];
    float scores[64 * 4];
    mc_status status;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) rows[i] = (float)((i * 7919) % 101) - 50;
    on();
    TRY(mc_similarity_top_k(MC_SIMILARITY_COSINE, rows, 64, rows, 64, 256, 4, indices, scores, &error));
    note(indices, sizeof indices);
out:
    return status;
}

static mc_status session(mc_session **out) {
    mc_status status = mc_session_new(coder, 0, out, &error);
    return status == MC_OK ? mc_session_append(*out, PROMPT, NULL, &error) : status;
}

static void note_logits(const mc_session *session) {
    static float logits[1 << 16];
    if (mc_session_logits(session, logits, mc_model_vocab_size(coder), &error) == MC_OK) note(logits, sizeof found);
}

static mc_status append(void) {
    mc_session *made = NULL;
    mc_status status;
    on();
    TRY(session(&made));
    failed_allocations();
    note_logits(made);
out:
    mc_session_free(made);
    return status;
}

static mc_status fork_session(void) {
    mc_session *made = NULL, *fork = NULL;
    mc_status status;
    TRY(session(&made));
    on();
    TRY(mc_session_fork(made, &fork, &error));
    TRY(mc_session_append(fork, "more", 4, NULL, &error));
    note("done", 4);
out:
    mc_session_free(made);
    mc_session_free(fork);
    return status;
}

static mc_status save_and_load(void) {
    mc_session *made = NULL, *read = NULL;
    mc_status status;
    char path[128];
    snprintf(path, sizeof path, "%s/session", folder);
    TRY(session(&made));
    on();
    TRY(mc_session_save(made, path, &error));
    TRY(mc_session_load(coder, path, &read, &error));
    size_t position = mc_session_position(read);
    note(&position, sizeof position);
out:
    mc_session_free(made);
    mc_session_free(read);
    return status;
}

static mc_status train(void) {
    uint32_t tokens[64];
    size_t offsets[] = {0, 30, 64};
    float loss = 0, value = 1;
    char path[128];
    mc_lora_trainer *trainer = NULL;
    mc_lora *adapter = NULL, *read = NULL;
    mc_model *merged = NULL;
    mc_status status;
    for (uint32_t i = 0; i < 64; i++) tokens[i] = 10 + i * 7 % 200;
    snprintf(path, sizeof path, "%s/adapter", folder);
    on();
    TRY(mc_lora_trainer_new(coder, NULL, NULL, &trainer, &error));
    TRY(mc_lora_trainer_train_step(trainer, tokens, NULL, offsets, 2, &loss, &error));
    TRY(mc_lora_trainer_save(trainer, path, &error));
    TRY(mc_lora_trainer_adapter(trainer, &adapter, &error));
    TRY(mc_lora_save(adapter, path, &error));
    TRY(mc_lora_load(coder, path, &read, &error));
    TRY(mc_model_merge(coder, read, value, &merged, &error));
    note(&loss, sizeof loss);
out:
    mc_lora_trainer_free(trainer);
    mc_lora_free(adapter);
    mc_lora_free(read);
    mc_model_free(merged);
    return status;
}

static int32_t one_step(void *user_data, const mc_train_event *event) {
    (void)user_data, (void)event;
    return MC_STOP;
}

static mc_status train_on_dataset(void) {
    mc_dataset *dataset = NULL;
    mc_lora_trainer *trainer = NULL;
    mc_status status;
    on();
    TRY(mc_dataset_load_jsonl("examples/data/facts.jsonl", &dataset, &error));
    TRY(mc_lora_trainer_new(coder, NULL, NULL, &trainer, &error));
    TRY(mc_lora_trainer_train(trainer, dataset, NULL, one_step, NULL, &error));
out:
    // That the callback stops is how it ends.
    if (status == MC_CANCELLED || status == MC_OK) {
        status = MC_OK;
        note("done", 4);
    }
    mc_dataset_free(dataset);
    mc_lora_trainer_free(trainer);
    return status;
}

static mc_status save_model(void) {
    mc_status status;
    char path[128], command[160];
    snprintf(path, sizeof path, "%s/model", folder);
    snprintf(command, sizeof command, "rm -rf %s", path);
    if (system(command) != 0) return MC_ERROR_IO;
    on();
    TRY(mc_model_save(coder, path, NULL, NULL, NULL, &error));
    note("done", 4);
out:
    return status;
}

static mc_status render(void) {
    mc_chat *chat = mc_chat_new();
    mc_string *text = NULL;
    mc_status status;
    on();
    TRY(mc_chat_add(chat, "user", PROMPT, &error));
    TRY(mc_model_render_chat(coder, chat, true, &text, &error));
    note(mc_string_data(text), mc_string_len(text));
out:
    mc_string_free(text);
    mc_chat_free(chat);
    return status;
}

static mc_status write_chat(void) {
    static char content[200000];
    mc_chat *chat = mc_chat_new();
    mc_string *text = NULL;
    mc_status status;
    memset(content, 'a', sizeof content);
    TRY(mc_chat_add(chat, "user", content, sizeof content, &error));
    on();
    TRY(mc_chat_json(chat, &text, &error));
    note(mc_string_data(text), mc_string_len(text));
out:
    mc_string_free(text);
    mc_chat_free(chat);
    return status;
}

static mc_status encode(void) {
    mc_tokenizer *tokenizer = NULL;
    mc_tokens *tokens = NULL;
    mc_status status;
    TRY(mc_model_tokenizer(coder, &tokenizer, &error));
    on();
    TRY(mc_tokenizer_encode(tokenizer, PROMPT, true, &tokens, &error));
    size_t len = mc_tokens_len(tokens);
    note(&len, sizeof len);
out:
    mc_tokens_free(tokens);
    mc_tokenizer_free(tokenizer);
    return status;
}

static const struct {
    const char *name;
    mc_status (*run)(void);
} operations[] = {
    {"load", load}, {"load quantised", load_quantised}, {"generate", generate}, {"conform to a schema", conform}, {"embed", embed},
    {"similarity", similarity}, {"append", append}, {"fork", fork_session}, {"save and load a session", save_and_load},
    {"train, save, load, merge", train}, {"train on a dataset", train_on_dataset}, {"save a model", save_model}, {"render", render},
    {"write a conversation", write_chat}, {"encode", encode},
};

int main(int argc, char **argv) {
    int passed = 0, failures = 0;
    // ISO C has no conversion of an object's pointer to a function's; POSIX asks for it.
    *(void **)&fail_allocations = dlsym(RTLD_DEFAULT, "fail_allocations");
    *(void **)&failed_allocations = dlsym(RTLD_DEFAULT, "failed_allocations");
    if (argc != 4 || fail_allocations == NULL || failed_allocations == NULL) return 2;
    fail_bytes = strtoul(argv[1], NULL, 10);
    fail_lasting = strcmp(argv[2], "lasting") == 0;
    size_t stride = strtoul(argv[3], NULL, 10);
    strcpy(folder, "/tmp/no_memory_XXXXXX");
    if (mkdtemp(folder) == NULL || mc_model_load("models/tiny-coder", NULL, &coder, &error) != MC_OK ||
        mc_model_load("models/tiny-embed", NULL, &embedder, &error) != MC_OK)
        return 2;
    for (size_t i = 0; i < sizeof operations / sizeof *operations; i++) {
        char want[sizeof found];
        size_t tried = 0, refused = 0, wrong = 0;
        int is_over = 0;
        fail_number = (size_t)-1;
        found_len = 0;
        mc_status status = operations[i].run();
        failed_allocations();
        size_t want_len = found_len;
        memcpy(want, found, sizeof want);
        wrong += status != MC_OK || want_len == 0;
        for (fail_number = 1; !is_over; fail_number += stride) {
            found_len = 0;
            printf("%s: allocation %zu\r", operations[i].name, fail_number);
            fflush(stdout);
            status = operations[i].run();
            is_over = failed_allocations() == 0;
            tried++;
            refused += status == MC_ERROR_OUT_OF_MEMORY;
            if (status == MC_OK ? found_len != want_len || memcmp(found, want, want_len) != 0 : status != MC_ERROR_OUT_OF_MEMORY) {
                printf("%s: allocation %zu: status %d: %s\n", operations[i].name, fail_number, (int)status,
                       error != NULL ? mc_error_message(error) : "another result");
                wrong++;
            }
            mc_error_free(error);
            error = NULL;
        }
        if (wrong == 0) passed++;
        else failures++;
        printf("%s: %zu allocations, %zu times no memory\n", operations[i].name, tried, refused);
    }
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s", folder);
    if (system(command) != 0) return 2;
    mc_model_free(coder);
    mc_model_free(embedder);
    printf("%d passed, %d failed\n", passed, failures);
    return failures != 0;
}
