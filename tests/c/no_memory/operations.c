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
static mc_model *coder, *embedder, *reranker;
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

static mc_status encode_long(void) {
    static char text[30000]; // what the tokenizer makes of it fits into what the library has put by
    mc_tokenizer *tokenizer = NULL;
    mc_tokens *tokens = NULL;
    mc_status status;
    for (size_t i = 0; i < sizeof text; i++) text[i] = "let x = 10; // a line\n"[i % 22];
    TRY(mc_model_tokenizer(coder, &tokenizer, &error));
    on();
    TRY(mc_tokenizer_encode(tokenizer, text, sizeof text, true, &tokens, &error));
    size_t len = mc_tokens_len(tokens);
    note(&len, sizeof len);
out:
    mc_tokens_free(tokens);
    mc_tokenizer_free(tokenizer);
    return status;
}

static mc_status decode(void) {
    static uint32_t ids[30000];
    mc_tokenizer *tokenizer = NULL;
    mc_text_stream *stream = NULL;
    mc_string *text = NULL;
    mc_status status;
    for (uint32_t i = 0; i < sizeof ids / sizeof *ids; i++) ids[i] = 10 + i * 7 % 200;
    TRY(mc_model_tokenizer(coder, &tokenizer, &error));
    on();
    TRY(mc_tokenizer_decode(tokenizer, ids, sizeof ids / sizeof *ids, true, &text, &error));
    note(mc_string_data(text), mc_string_len(text));
    TRY(mc_text_stream_new(tokenizer, &stream, &error));
    for (size_t i = 0; i < 20; i++) {
        mc_string_free(text);
        text = NULL;
        TRY(mc_text_stream_push(stream, ids[i], &text, &error));
    }
out:
    mc_text_stream_free(stream);
    mc_string_free(text);
    mc_tokenizer_free(tokenizer);
    return status;
}

static mc_status load_tokenizers(void) {
    const char *paths[] = {"models/tiny-coder", "tests/golden/gguf/tiny-coder-Q4_K_S.gguf", "models/tiny-embed/tokenizer.json"};
    mc_tokenizer *tokenizer = NULL;
    mc_status status;
    on();
    for (size_t i = 0; i < 3; i++) {
        mc_tokenizer_free(tokenizer);
        tokenizer = NULL;
        TRY(mc_tokenizer_load(paths[i], &tokenizer, &error));
        size_t size = mc_tokenizer_vocab_size(tokenizer);
        note(&size, sizeof size);
    }
out:
    mc_tokenizer_free(tokenizer);
    return status;
}

// `count` times a text between two others, without the comma at the end.
static char *repeated(const char *begin, const char *text, size_t count, const char *end, size_t *len) {
    char *all = malloc(strlen(begin) + count * strlen(text) + strlen(end) + 1), *at = all;
    if (all == NULL) exit(2);
    at += sprintf(at, "%s", begin);
    for (size_t i = 0; i < count; i++) at += sprintf(at, "%s", text);
    at += sprintf(at - 1, "%s", end) - 1;
    *len = (size_t)(at - all);
    return all;
}

static mc_status read_chat(void) {
    mc_chat *chat = NULL;
    mc_string *text = NULL;
    mc_status status;
    size_t lens[4];
    char *messages = repeated("[", "{\"role\": \"user\", \"content\": \"a\\n\"},", 3000, "]", &lens[0]);
    char *tools = repeated("[", "{\"type\": \"function\", \"function\": {\"name\": \"f\", \"parameters\": {\"enum\": [1, 2]}}},", 500, "]", &lens[1]);
    char *variable = repeated("[", "1,", 10000, "]", &lens[2]);
    char *content = repeated("", "A sentence. ", 20000, "", &lens[3]);
    on();
    TRY(mc_chat_from_json(messages, lens[0], &chat, &error));
    TRY(mc_chat_set_tools_json(chat, tools, lens[1], &error));
    TRY(mc_chat_set_variable_json(chat, "numbers", variable, lens[2], &error));
    TRY(mc_chat_add(chat, "user", content, lens[3], &error));
    TRY(mc_chat_json(chat, &text, &error));
    note(mc_string_data(text), mc_string_len(text));
out:
    mc_string_free(text);
    mc_chat_free(chat);
    free(messages), free(tools), free(variable), free(content);
    return status;
}

static mc_status render_by(const char *template) {
    mc_chat *chat = mc_chat_new();
    mc_string *text = NULL;
    mc_status status;
    TRY(mc_chat_set_template(chat, template, strlen(template), &error));
    on();
    TRY(mc_model_render_chat(coder, chat, false, &text, &error));
    note(mc_string_data(text), mc_string_len(text));
out:
    mc_string_free(text);
    mc_chat_free(chat);
    return status;
}
static mc_status render_values(void) {
    return render_by("{% set s = 'a b' * 200000 %}{% set l = [1] * 50000 %}{{ (s|upper ~ s)|length }} {{ s.split()|length }} "
                     "{{ (l + [2] + l)|length }} {{ (s|list)|length }} {{ s|replace('a', 'bb')|length }}");
}
static mc_status render_output(void) { return render_by("{% for i in range(3000) %}{{ 'a' * 100 }}{% endfor %}"); }

static mc_status converse(void) {
    mc_chat *chat = mc_chat_new();
    mc_session *made = NULL;
    mc_status status;
    on();
    for (int i = 0; i < 5; i++) {
        TRY(mc_chat_add(chat, "user", PROMPT, &error));
        TRY(mc_chat_add(chat, "assistant", PROMPT, &error));
    }
    TRY(mc_chat_add(chat, "user", PROMPT, &error));
    TRY(mc_session_new(coder, 0, &made, &error));
    TRY(mc_session_set_chat(made, chat, NULL, &error));
    size_t position = mc_session_position(made);
    note(&position, sizeof position);
out:
    mc_session_free(made);
    mc_chat_free(chat);
    return status;
}

static mc_status score(void) {
    uint32_t tokens[40], best[5];
    float logprobs[40], best_logprobs[5];
    mc_session *made = NULL;
    mc_status status;
    for (uint32_t i = 0; i < 40; i++) tokens[i] = 10 + i * 7 % 200;
    TRY(session(&made));
    on();
    TRY(mc_session_score_tokens(made, tokens, 40, logprobs, NULL, &error));
    TRY(mc_session_top_logprobs(made, 5, best, best_logprobs, &error));
    note(logprobs, sizeof logprobs);
    note(best, sizeof best);
out:
    mc_session_free(made);
    return status;
}

static mc_status answer_two(void) {
    mc_session *sessions[2] = {NULL, NULL};
    mc_status status, statuses[2];
    mc_generate_options *options = mc_generate_options_new();
    mc_generate_options_set_max_tokens(options, 3);
    TRY(session(&sessions[0]));
    TRY(session(&sessions[1]));
    on();
    for (int i = 0; i < 2; i++) TRY(mc_session_begin(sessions[i], options, &error));
    for (;;) {
        const mc_token_event *events[2];
        status = mc_sessions_next(sessions, 2, events, statuses, &error);
        if (status != MC_OK) break;
        for (int i = 0; i < 2; i++) {
            if (statuses[i] != MC_OK && statuses[i] != MC_DONE) {
                status = statuses[i];
                goto out;
            }
            if (events[i] != NULL) note(&events[i]->token, sizeof events[i]->token);
        }
    }
    if (status == MC_DONE) status = MC_OK;
out:
    mc_session_free(sessions[0]);
    mc_session_free(sessions[1]);
    mc_generate_options_free(options);
    return status;
}

static mc_status rerank(void) {
    const char *documents[] = {"Sorts the numbers in place.", "hello", prompt};
    float scores[3];
    mc_status status;
    on();
    TRY(mc_rerank(reranker, PROMPT, documents, NULL, 3, NULL, scores, 3, &error));
    note(scores, sizeof scores);
out:
    return status;
}

static mc_status gguf(void) {
    mc_model *model = NULL;
    mc_status status;
    char path[128];
    snprintf(path, sizeof path, "%s/model.gguf", folder);
    on();
    TRY(mc_model_load("tests/golden/gguf/tiny-coder-Q4_K_S.gguf", NULL, &model, &error));
    TRY(mc_model_save_gguf(model, path, NULL, NULL, NULL, &error));
    note("done", 4);
out:
    mc_model_free(model);
    return status;
}

static mc_status fill_dataset(void) {
    mc_dataset *dataset = mc_dataset_new(), *read = NULL;
    mc_chat *chat = NULL;
    mc_status status;
    char path[128];
    size_t lens[3];
    char *text = repeated("", "A sentence. ", 20000, "", &lens[0]);
    char *messages = repeated("[", "{\"role\": \"user\", \"content\": \"a\\n\"},", 3000, "]", &lens[1]);
    char *lines = repeated("", "{\"prompt\": \"a question\", \"completion\": \"an answer\"}\n", 5000, "\n", &lens[2]);
    snprintf(path, sizeof path, "%s/lines.jsonl", folder);
    FILE *file = fopen(path, "w");
    if (file == NULL || fwrite(lines, lens[2], 1, file) != 1 || fwrite("{\"text\": \"", 10, 1, file) != 1 ||
        fwrite(text, lens[0], 1, file) != 1 || fwrite("\"}\n", 3, 1, file) != 1 || fclose(file) != 0)
        exit(2);
    TRY(mc_chat_from_json(messages, lens[1], &chat, &error));
    on();
    TRY(mc_dataset_add_text(dataset, text, lens[0], &error));
    TRY(mc_dataset_add_completion(dataset, text, lens[0], text, lens[0], &error));
    TRY(mc_dataset_add_chat(dataset, chat, &error));
    TRY(mc_dataset_load_jsonl(path, &read, &error));
    size_t counts[] = {mc_dataset_len(dataset), mc_dataset_len(read)};
    note(counts, sizeof counts);
out:
    mc_dataset_free(dataset);
    mc_dataset_free(read);
    mc_chat_free(chat);
    free(text), free(messages), free(lines);
    return status;
}

static mc_status resume(void) {
    uint32_t tokens[20];
    size_t offsets[] = {0, 20};
    float loss;
    char path[128];
    mc_lora_trainer *trainer = NULL, *resumed = NULL;
    mc_status status;
    for (uint32_t i = 0; i < 20; i++) tokens[i] = 10 + i * 7 % 200;
    snprintf(path, sizeof path, "%s/checkpoint", folder);
    TRY(mc_lora_trainer_new(coder, NULL, NULL, &trainer, &error));
    TRY(mc_lora_trainer_train_step(trainer, tokens, NULL, offsets, 1, &loss, &error));
    TRY(mc_lora_trainer_save(trainer, path, &error));
    on();
    TRY(mc_lora_trainer_resume(coder, path, NULL, &resumed, &error));
    TRY(mc_lora_trainer_train_step(resumed, tokens, NULL, offsets, 1, &loss, &error));
    note(&loss, sizeof loss);
out:
    mc_lora_trainer_free(trainer);
    mc_lora_trainer_free(resumed);
    return status;
}

// Options cannot fail: what could not be copied is an error of the call that uses them.
static mc_status options_of_texts(void) {
    static char stop[60000];
    mc_generation *generation = NULL;
    mc_generate_options *options = mc_generate_options_new();
    mc_status status;
    memset(stop, 'a', sizeof stop);
    on();
    mc_generate_options_set_max_tokens(options, 2);
    for (int i = 0; i < 20; i++) mc_generate_options_add_stop(options, stop, sizeof stop);
    for (uint32_t i = 0; i < 50000; i++) mc_generate_options_add_logit_bias(options, i % 200, 0);
    TRY(mc_generate(coder, PROMPT, options, &generation, &error));
    note(mc_generation_text(generation), mc_generation_text_len(generation));
out:
    mc_generation_free(generation);
    mc_generate_options_free(options);
    return status;
}

static const struct {
    const char *name;
    mc_status (*run)(void);
} operations[] = {
    {"load", load}, {"load quantised", load_quantised}, {"generate", generate}, {"conform to a schema", conform}, {"embed", embed},
    {"similarity", similarity}, {"append", append}, {"fork", fork_session}, {"save and load a session", save_and_load},
    {"train, save, load, merge", train}, {"train on a dataset", train_on_dataset}, {"save a model", save_model}, {"render", render},
    {"write a conversation", write_chat}, {"encode", encode}, {"encode a long text", encode_long}, {"decode", decode},
    {"load tokenizers", load_tokenizers}, {"read a conversation", read_chat}, {"render values", render_values},
    {"render a long text", render_output}, {"converse", converse}, {"score", score}, {"answer two sessions", answer_two},
    {"rerank", rerank}, {"load and save GGUF", gguf}, {"fill a dataset", fill_dataset}, {"resume a training", resume},
    {"options of texts", options_of_texts},
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
        mc_model_load("models/tiny-embed", NULL, &embedder, &error) != MC_OK ||
        mc_model_load("tests/golden/rerankers/bert", NULL, &reranker, &error) != MC_OK)
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
    mc_model_free(reranker);
    printf("%d passed, %d failed\n", passed, failures);
    return failures != 0;
}
