// Every operation with an allocation that fails: operations BYTES once|lasting STRIDE. Each goes through its allocations one after
// another (every STRIDE-th of them), and ends with its result, the same as ever, or with MC_ERROR_OUT_OF_MEMORY; and never does it
// end the process. Runs under fail.c.
#define _GNU_SOURCE
#include "operation.h"

#include <dlfcn.h>

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

static const char prompt[] = "What does `Vec::push` do? And what is a trait, a struct, an iterator?";
#define PROMPT prompt, sizeof prompt - 1

static mc_status load_as(const char *quantization) {
    h.model_options = mc_model_options_new();
    if (quantization != NULL) mc_model_options_set_quantization(h.model_options, quantization);
    on();
    TRY(mc_model_load("models/tiny-coder", h.model_options, &h.model, &error));
    size_t vocabulary = mc_model_vocab_size(h.model);
    note(&vocabulary, sizeof vocabulary);
    return MC_OK;
}
static mc_status load(void) { return load_as(NULL); }
static mc_status load_quantised(void) { return load_as("q8_0"); }

static mc_status generate_with(const char *schema) {
    h.options = mc_generate_options_new();
    mc_generate_options_set_max_tokens(h.options, 6);
    if (schema != NULL) mc_generate_options_set_json_schema(h.options, schema, strlen(schema));
    on();
    TRY(mc_generate(coder, PROMPT, h.options, &h.generation, &error));
    note(mc_generation_text(h.generation), mc_generation_text_len(h.generation));
    return MC_OK;
}
static mc_status generate(void) { return generate_with(NULL); }
static mc_status conform(void) {
    return generate_with("{\"type\": \"object\", \"properties\": {\"a\": {\"type\": \"integer\"}}, \"required\": [\"a\"]}");
}

static mc_status embed(void) {
    static float vectors[3 * 4096];
    const char *texts[] = {"a text", prompt, ""};
    size_t lens[] = {6, sizeof prompt - 1, 0}, len = 3 * mc_model_embed_dim(embedder, NULL);
    on();
    TRY(mc_embed_batch(embedder, texts, lens, 3, NULL, vectors, len, &error));
    note(vectors, len * sizeof *vectors);
    return MC_OK;
}

static mc_status similarity(void) {
    static float rows[64 * 256];
    size_t indices[64 * 4];
    float scores[64 * 4];
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) rows[i] = (float)((i * 7919) % 101) - 50;
    on();
    TRY(mc_similarity_top_k(MC_SIMILARITY_COSINE, rows, 64, rows, 64, 256, 4, indices, scores, &error));
    note(indices, sizeof indices);
    return MC_OK;
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
    on();
    TRY(session(&h.session));
    failed_allocations();
    note_logits(h.session);
    return MC_OK;
}

static mc_status fork_session(void) {
    TRY(session(&h.session));
    on();
    TRY(mc_session_fork(h.session, &h.second, &error));
    TRY(mc_session_append(h.second, "more", 4, NULL, &error));
    note("done", 4);
    return MC_OK;
}

static mc_status save_and_load(void) {
    char path[128];
    snprintf(path, sizeof path, "%s/session", folder);
    TRY(session(&h.session));
    on();
    TRY(mc_session_save(h.session, path, &error));
    TRY(mc_session_load(coder, path, &h.second, &error));
    size_t position = mc_session_position(h.second);
    note(&position, sizeof position);
    return MC_OK;
}

static mc_status train(void) {
    float loss = 0;
    char path[128];
    snprintf(path, sizeof path, "%s/adapter", folder);
    on();
    TRY(train_step(coder, &error, &loss));
    TRY(mc_lora_trainer_save(h.trainer, path, &error));
    TRY(mc_lora_trainer_adapter(h.trainer, &h.adapter, &error));
    TRY(mc_lora_save(h.adapter, path, &error));
    TRY(mc_lora_load(coder, path, &h.loaded, &error));
    TRY(mc_model_merge(coder, h.loaded, 1, &h.merged, &error));
    note(&loss, sizeof loss);
    return MC_OK;
}

static int32_t one_step(void *user_data, const mc_train_event *event) {
    (void)user_data, (void)event;
    return MC_STOP;
}

static mc_status train_on_dataset(void) {
    on();
    TRY(mc_dataset_load_jsonl("examples/data/facts.jsonl", &h.dataset, &error));
    TRY(mc_lora_trainer_new(coder, NULL, NULL, &h.trainer, &error));
    TRY(mc_lora_trainer_train(h.trainer, h.dataset, NULL, one_step, NULL, &error));
    note("done", 4);
    return MC_OK;
}

static mc_status save_model(void) {
    char path[128], command[160];
    snprintf(path, sizeof path, "%s/model", folder);
    snprintf(command, sizeof command, "rm -rf %s", path);
    if (system(command) != 0) return MC_ERROR_IO;
    on();
    TRY(mc_model_save(coder, path, NULL, NULL, NULL, &error));
    note("done", 4);
    return MC_OK;
}

static mc_status render(void) {
    h.chat = mc_chat_new();
    on();
    TRY(mc_chat_add(h.chat, "user", PROMPT, &error));
    TRY(mc_model_render_chat(coder, h.chat, true, &h.string, &error));
    note(mc_string_data(h.string), mc_string_len(h.string));
    return MC_OK;
}

static mc_status write_chat(void) {
    static char content[200000];
    h.chat = mc_chat_new();
    memset(content, 'a', sizeof content);
    TRY(mc_chat_add(h.chat, "user", content, sizeof content, &error));
    on();
    TRY(mc_chat_json(h.chat, &h.string, &error));
    note(mc_string_data(h.string), mc_string_len(h.string));
    return MC_OK;
}

static mc_status encode(void) {
    TRY(mc_model_tokenizer(coder, &h.tokenizer, &error));
    on();
    TRY(mc_tokenizer_encode(h.tokenizer, PROMPT, true, &h.tokens, &error));
    size_t len = mc_tokens_len(h.tokens);
    note(&len, sizeof len);
    return MC_OK;
}

static mc_status encode_long(void) {
    static char text[30000]; // what the tokenizer makes of it fits into what the library has put by
    for (size_t i = 0; i < sizeof text; i++) text[i] = "let x = 10; // a line\n"[i % 22];
    TRY(mc_model_tokenizer(coder, &h.tokenizer, &error));
    on();
    TRY(mc_tokenizer_encode(h.tokenizer, text, sizeof text, true, &h.tokens, &error));
    size_t len = mc_tokens_len(h.tokens);
    note(&len, sizeof len);
    return MC_OK;
}

static mc_status decode(void) {
    static uint32_t ids[30000];
    for (uint32_t i = 0; i < sizeof ids / sizeof *ids; i++) ids[i] = 10 + i * 7 % 200;
    TRY(mc_model_tokenizer(coder, &h.tokenizer, &error));
    on();
    TRY(mc_tokenizer_decode(h.tokenizer, ids, sizeof ids / sizeof *ids, true, &h.string, &error));
    note(mc_string_data(h.string), mc_string_len(h.string));
    TRY(mc_text_stream_new(h.tokenizer, &h.stream, &error));
    for (size_t i = 0; i < 20; i++) {
        mc_string_free(h.string);
        h.string = NULL;
        TRY(mc_text_stream_push(h.stream, ids[i], &h.string, &error));
    }
    return MC_OK;
}

static mc_status load_tokenizers(void) {
    const char *paths[] = {"models/tiny-coder", "tests/golden/gguf/tiny-coder-Q4_K_S.gguf", "models/tiny-embed/tokenizer.json"};
    on();
    for (size_t i = 0; i < 3; i++) {
        mc_tokenizer_free(h.tokenizer);
        h.tokenizer = NULL;
        TRY(mc_tokenizer_load(paths[i], &h.tokenizer, &error));
        size_t size = mc_tokenizer_vocab_size(h.tokenizer);
        note(&size, sizeof size);
    }
    return MC_OK;
}

static mc_status read_chat(void) {
    size_t lens[4];
    char *messages = h.texts[0] = repeated("[", "{\"role\": \"user\", \"content\": \"a\\n\"},", 3000, "]", &lens[0]);
    char *tools = h.texts[1] = repeated("[", "{\"type\": \"function\", \"function\": {\"name\": \"f\", \"parameters\": {\"enum\": [1, 2]}}},", 500, "]", &lens[1]);
    char *variable = h.texts[2] = repeated("[", "1,", 10000, "]", &lens[2]);
    char *content = h.texts[3] = repeated("", "A sentence. ", 20000, "", &lens[3]);
    on();
    TRY(mc_chat_from_json(messages, lens[0], &h.chat, &error));
    TRY(mc_chat_set_tools_json(h.chat, tools, lens[1], &error));
    TRY(mc_chat_set_variable_json(h.chat, "numbers", variable, lens[2], &error));
    TRY(mc_chat_add(h.chat, "user", content, lens[3], &error));
    TRY(mc_chat_json(h.chat, &h.string, &error));
    note(mc_string_data(h.string), mc_string_len(h.string));
    return MC_OK;
}

static mc_status render_by(const char *template) {
    h.chat = mc_chat_new();
    TRY(mc_chat_set_template(h.chat, template, strlen(template), &error));
    on();
    TRY(mc_model_render_chat(coder, h.chat, false, &h.string, &error));
    note(mc_string_data(h.string), mc_string_len(h.string));
    return MC_OK;
}
static mc_status render_values(void) {
    return render_by("{% set s = 'a b' * 200000 %}{% set l = [1] * 50000 %}{{ (s|upper ~ s)|length }} {{ s.split()|length }} "
                     "{{ (l + [2] + l)|length }} {{ (s|list)|length }} {{ s|replace('a', 'bb')|length }}");
}
static mc_status render_output(void) { return render_by("{% for i in range(3000) %}{{ 'a' * 100 }}{% endfor %}"); }

static mc_status converse(void) {
    h.chat = mc_chat_new();
    on();
    for (int i = 0; i < 5; i++) {
        TRY(mc_chat_add(h.chat, "user", PROMPT, &error));
        TRY(mc_chat_add(h.chat, "assistant", PROMPT, &error));
    }
    TRY(mc_chat_add(h.chat, "user", PROMPT, &error));
    TRY(mc_session_new(coder, 0, &h.session, &error));
    TRY(mc_session_set_chat(h.session, h.chat, NULL, &error));
    size_t position = mc_session_position(h.session);
    note(&position, sizeof position);
    return MC_OK;
}

static mc_status score(void) {
    uint32_t tokens[40], best[5];
    float logprobs[40], best_logprobs[5];
    for (uint32_t i = 0; i < 40; i++) tokens[i] = 10 + i * 7 % 200;
    TRY(session(&h.session));
    on();
    TRY(mc_session_score_tokens(h.session, tokens, 40, logprobs, NULL, &error));
    TRY(mc_session_top_logprobs(h.session, 5, best, best_logprobs, &error));
    note(logprobs, sizeof logprobs);
    note(best, sizeof best);
    return MC_OK;
}

static mc_status answer_two(void) {
    h.options = mc_generate_options_new();
    mc_generate_options_set_max_tokens(h.options, 3);
    TRY(session(&h.session));
    TRY(session(&h.second));
    mc_session *sessions[] = {h.session, h.second};
    on();
    for (int i = 0; i < 2; i++) TRY(mc_session_begin(sessions[i], h.options, &error));
    for (;;) {
        const mc_token_event *events[2];
        mc_status statuses[2], status = mc_sessions_next(sessions, 2, events, statuses, &error);
        if (status == MC_DONE) return MC_OK;
        TRY(status);
        for (int i = 0; i < 2; i++) {
            if (statuses[i] != MC_DONE) TRY(statuses[i]);
            if (events[i] != NULL) note(&events[i]->token, sizeof events[i]->token);
        }
    }
}

static mc_status rerank(void) {
    const char *documents[] = {"Sorts the numbers in place.", "hello", prompt};
    float scores[3];
    on();
    TRY(mc_rerank(reranker, PROMPT, documents, NULL, 3, NULL, scores, 3, &error));
    note(scores, sizeof scores);
    return MC_OK;
}

static mc_status gguf(void) {
    char path[128];
    snprintf(path, sizeof path, "%s/model.gguf", folder);
    on();
    TRY(mc_model_load("tests/golden/gguf/tiny-coder-Q4_K_S.gguf", NULL, &h.model, &error));
    TRY(mc_model_save_gguf(h.model, path, NULL, NULL, NULL, &error));
    note("done", 4);
    return MC_OK;
}

static mc_status fill_dataset(void) {
    h.dataset = mc_dataset_new();
    char path[128];
    size_t lens[3];
    char *text = h.texts[0] = repeated("", "A sentence. ", 20000, "", &lens[0]);
    char *messages = h.texts[1] = repeated("[", "{\"role\": \"user\", \"content\": \"a\\n\"},", 3000, "]", &lens[1]);
    char *lines = h.texts[2] = repeated("", "{\"prompt\": \"a question\", \"completion\": \"an answer\"}\n", 5000, "\n", &lens[2]);
    snprintf(path, sizeof path, "%s/lines.jsonl", folder);
    FILE *file = fopen(path, "w");
    if (file == NULL || fwrite(lines, lens[2], 1, file) != 1 || fwrite("{\"text\": \"", 10, 1, file) != 1 ||
        fwrite(text, lens[0], 1, file) != 1 || fwrite("\"}\n", 3, 1, file) != 1 || fclose(file) != 0)
        exit(2);
    TRY(mc_chat_from_json(messages, lens[1], &h.chat, &error));
    on();
    TRY(mc_dataset_add_text(h.dataset, text, lens[0], &error));
    TRY(mc_dataset_add_completion(h.dataset, text, lens[0], text, lens[0], &error));
    TRY(mc_dataset_add_chat(h.dataset, h.chat, &error));
    TRY(mc_dataset_load_jsonl(path, &h.lines, &error));
    size_t counts[] = {mc_dataset_len(h.dataset), mc_dataset_len(h.lines)};
    note(counts, sizeof counts);
    return MC_OK;
}

static mc_status resume(void) {
    uint32_t tokens[20];
    size_t offsets[] = {0, 20};
    float loss;
    char path[128];
    for (uint32_t i = 0; i < 20; i++) tokens[i] = 10 + i * 7 % 200;
    snprintf(path, sizeof path, "%s/checkpoint", folder);
    TRY(mc_lora_trainer_new(coder, NULL, NULL, &h.trainer, &error));
    TRY(mc_lora_trainer_train_step(h.trainer, tokens, NULL, offsets, 1, &loss, &error));
    TRY(mc_lora_trainer_save(h.trainer, path, &error));
    on();
    TRY(mc_lora_trainer_resume(coder, path, NULL, &h.resumed, &error));
    TRY(mc_lora_trainer_train_step(h.resumed, tokens, NULL, offsets, 1, &loss, &error));
    note(&loss, sizeof loss);
    return MC_OK;
}

// Options cannot fail: what could not be copied is an error of the call that uses them.
static mc_status options_of_texts(void) {
    static char stop[60000];
    h.options = mc_generate_options_new();
    memset(stop, 'a', sizeof stop);
    on();
    mc_generate_options_set_max_tokens(h.options, 2);
    for (int i = 0; i < 20; i++) mc_generate_options_add_stop(h.options, stop, sizeof stop);
    for (uint32_t i = 0; i < 50000; i++) mc_generate_options_add_logit_bias(h.options, i % 200, 0);
    TRY(mc_generate(coder, PROMPT, h.options, &h.generation, &error));
    note(mc_generation_text(h.generation), mc_generation_text_len(h.generation));
    return MC_OK;
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
        free_things();
        failed_allocations();
        size_t want_len = found_len;
        memcpy(want, found, sizeof want);
        wrong += status != MC_OK || want_len == 0;
        for (fail_number = 1; !is_over; fail_number += stride) {
            found_len = 0;
            printf("%s: allocation %zu\r", operations[i].name, fail_number);
            fflush(stdout);
            status = operations[i].run();
            free_things();
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
