// Everything at once, for long: soak SECONDS [THREADS]. Threads share models, an adapter and cancel flags, and do one operation after
// another in a seeded order. Each gives what it gave one thread alone, to the bit; memory does not grow; nothing is
// left when they have ended.
#include "../check.h"

#include <dirent.h>
#include <stdatomic.h>
#include <time.h>

#define SEEDS 4
#define LEAST_GROWTH (64u << 20) // what allocators keep for threads

static mc_model *coder, *quantised, *embedder, *reranker;
static mc_lora *adapter;
static char folder[] = "/tmp/metal-candle-soak-XXXXXX";

static uint64_t hash(uint64_t hash, const void *bytes, size_t len) {
    for (size_t i = 0; i < len; i++) hash = (hash ^ ((const unsigned char *)bytes)[i]) * 0x100000001b3u;
    return hash;
}
#define START 0xcbf29ce484222325u

// An operation that fails tells why and ends the program: there is nothing to compare.
#define MUST(call)                                                      \
    do {                                                                \
        mc_status status_of_call = (call);                              \
        if (status_of_call != MC_OK) {                                  \
            fprintf(stderr, "%s: %s\n", #call, mc_status_name(status_of_call)); \
            exit(1);                                                    \
        }                                                               \
    } while (0)

static const char *const prompts[SEEDS] = {QUESTION, "What is a trait?", "fn main() {", "What does `String::new` return? And `len`?"};

static uint64_t generation_of(mc_generation *generation) {
    uint64_t found = hash(START, mc_generation_text(generation), mc_generation_text_len(generation));
    mc_generation_free(generation);
    return found;
}

static uint64_t generate(size_t seed) {
    mc_generation *generation = NULL;
    mc_generate_options *options = mc_generate_options_new();
    mc_generate_options_set_max_tokens(options, 12);
    mc_generate_options_set_temperature(options, seed % 2 ? 0.8 : 0.0);
    mc_generate_options_set_seed(options, seed);
    if (seed == 3) mc_generate_options_set_lora(options, adapter, 1.0f);
    MUST(mc_generate(coder, prompts[seed], strlen(prompts[seed]), options, &generation, NULL));
    mc_generate_options_free(options);
    return generation_of(generation);
}

static uint64_t conform(size_t seed) {
    static const char schema[] = "{\"type\":\"object\",\"properties\":{\"n\":{\"type\":\"integer\"}},\"required\":[\"n\"]}";
    mc_generation *generation = NULL;
    mc_generate_options *options = greedy(10);
    mc_generate_options_set_json_schema(options, schema, strlen(schema));
    MUST(mc_generate(coder, prompts[seed], strlen(prompts[seed]), options, &generation, NULL));
    mc_generate_options_free(options);
    return generation_of(generation);
}

static uint64_t cancelled(size_t seed) {
    mc_generation *generation = NULL;
    mc_cancel *cancel = mc_cancel_new();
    mc_generate_options *options = greedy(12);
    mc_generate_options_set_cancel(options, cancel);
    mc_cancel_trigger(cancel);
    mc_status status = mc_generate(coder, prompts[seed], strlen(prompts[seed]), options, &generation, NULL);
    mc_generation_free(generation);
    mc_generate_options_free(options);
    mc_cancel_free(cancel);
    return hash(START, &status, sizeof status);
}

static uint64_t logits_of(mc_session *session) {
    size_t len = mc_model_vocab_size(coder);
    float *logits = malloc(len * sizeof *logits);
    MUST(mc_session_logits(session, logits, len, NULL));
    uint64_t found = hash(START, logits, len * sizeof *logits);
    free(logits);
    return found;
}

// A place that no other operation has.
struct place {
    char path[128];
};

static struct place new_place(void) {
    static _Atomic size_t count;
    struct place place;
    snprintf(place.path, sizeof place.path, "%s/%zu", folder, (size_t)count++);
    return place;
}

// A file, or a directory of files.
static void clear(const struct place *place) {
    char path[512];
    DIR *directory = opendir(place->path);
    for (struct dirent *entry; directory != NULL && (entry = readdir(directory)) != NULL;) {
        snprintf(path, sizeof path, "%s/%s", place->path, entry->d_name);
        if (entry->d_name[0] != '.') remove(path);
    }
    if (directory != NULL) closedir(directory);
    remove(place->path);
}

static uint64_t session(size_t seed) {
    mc_session *session = NULL, *fork = NULL, *read = NULL;
    struct place place = new_place();
    MUST(mc_session_new(coder, 0, &session, NULL));
    MUST(mc_session_append(session, prompts[seed], strlen(prompts[seed]), NULL, NULL));
    if (seed % 2) MUST(mc_session_set_lora(session, adapter, 0.5f, NULL));
    MUST(mc_session_fork(session, &fork, NULL));
    MUST(mc_session_append(fork, "x", 1, NULL, NULL));
    uint64_t found = logits_of(session) ^ logits_of(fork);
    MUST(mc_session_save(session, place.path, NULL));
    MUST(mc_session_load(coder, place.path, &read, NULL));
    if (seed % 2) MUST(mc_session_set_lora(read, adapter, 0.5f, NULL));
    found += logits_of(read);
    MUST(mc_session_truncate(read, mc_session_position(read) / 2, NULL));
    found += logits_of(read);
    clear(&place);
    mc_session_free(session);
    mc_session_free(fork);
    mc_session_free(read);
    return found;
}

// Two answers, a token of each at a time, as a server gives them.
static uint64_t answer_two(size_t seed) {
    mc_session *sessions[2] = {NULL, NULL};
    mc_generate_options *options = greedy(6);
    uint64_t found = START;
    for (size_t i = 0; i < 2; i++) {
        const char *prompt = prompts[(seed + i) % SEEDS];
        MUST(mc_session_new(coder, 0, &sessions[i], NULL));
        MUST(mc_session_append(sessions[i], prompt, strlen(prompt), NULL, NULL));
        MUST(mc_session_begin(sessions[i], options, NULL));
    }
    for (;;) {
        const mc_token_event *events[2];
        mc_status statuses[2], status = mc_sessions_next(sessions, 2, events, statuses, NULL);
        if (status == MC_DONE) break;
        MUST(status);
        for (size_t i = 0; i < 2; i++) {
            if (events[i] != NULL) found = hash(found, &events[i]->token, sizeof events[i]->token);
        }
    }
    for (size_t i = 0; i < 2; i++) mc_session_free(sessions[i]);
    mc_generate_options_free(options);
    return found;
}

static uint64_t converse(size_t seed) {
    static const char tools[] = "[{\"type\": \"function\", \"function\": {\"name\": \"find\", \"description\": \"Finds a function.\", "
                                "\"parameters\": {\"type\": \"object\", \"properties\": {\"name\": {\"type\": \"string\"}}}}}]";
    mc_chat *chat = mc_chat_new(), *copy = NULL;
    mc_string *json = NULL;
    mc_session *session = NULL;
    mc_generation *generation = NULL;
    mc_generate_options *options = greedy(12);
    mc_generate_options_set_answer_format(options, "hermes");
    if (seed % 2) mc_generate_options_set_tool_choice(options, "required");
    MUST(mc_chat_set_tools_json(chat, tools, strlen(tools), NULL));
    MUST(mc_chat_add(chat, "user", prompts[seed], strlen(prompts[seed]), NULL));
    MUST(mc_session_new(coder, 0, &session, NULL));
    MUST(mc_session_set_chat(session, chat, NULL, NULL));
    MUST(mc_session_generate_stream(session, options, NULL, NULL, &generation, NULL));
    MUST(mc_chat_add(chat, "assistant", mc_generation_content(generation), mc_generation_content_len(generation), NULL));
    MUST(mc_chat_add(chat, "user", prompts[0], strlen(prompts[0]), NULL));
    MUST(mc_session_set_chat(session, chat, NULL, NULL));
    MUST(mc_chat_json(chat, &json, NULL));
    MUST(mc_chat_from_json(mc_string_data(json), mc_string_len(json), &copy, NULL));
    uint64_t found = hash(START, mc_string_data(json), mc_string_len(json)) + logits_of(session) + mc_chat_len(copy);
    found = hash(found, mc_generation_tool_calls_json(generation), mc_generation_tool_calls_json_len(generation));
    mc_string_free(json);
    mc_chat_free(chat);
    mc_chat_free(copy);
    mc_session_free(session);
    mc_generate_options_free(options);
    return found ^ generation_of(generation);
}

static uint64_t generate_quantised(size_t seed) {
    mc_generation *generation = NULL;
    mc_generate_options *options = greedy(8);
    MUST(mc_generate(quantised, prompts[seed], strlen(prompts[seed]), options, &generation, NULL));
    mc_generate_options_free(options);
    return generation_of(generation);
}

static uint64_t rerank(size_t seed) {
    size_t lens[SEEDS];
    float scores[SEEDS];
    for (size_t i = 0; i < SEEDS; i++) lens[i] = strlen(prompts[i]);
    MUST(mc_rerank(reranker, prompts[seed], lens[seed], prompts, lens, SEEDS, NULL, scores, SEEDS, NULL));
    return hash(START, scores, sizeof scores);
}

static uint64_t similarity(size_t seed) {
    float rows[40 * 16], scores[3 * 5];
    size_t indices[3 * 5];
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) rows[i] = (float)((i * 7919 + seed) % 101) - 50;
    MUST(mc_similarity_top_k(seed % 2 ? MC_SIMILARITY_COSINE : MC_SIMILARITY_DOT, rows, 3, rows, 40, 16, 5, indices, scores, NULL));
    return hash(hash(START, indices, sizeof indices), scores, sizeof scores);
}

static uint64_t embed(size_t seed) {
    size_t lens[SEEDS], dim = mc_model_embed_dim(embedder, NULL);
    for (size_t i = 0; i < SEEDS; i++) lens[i] = strlen(prompts[i]);
    float *vectors = malloc(SEEDS * dim * sizeof *vectors);
    size_t count = seed + 1;
    MUST(mc_embed_batch(embedder, prompts, lens, count, NULL, vectors, count * dim, NULL));
    uint64_t found = hash(START, vectors, count * dim * sizeof *vectors);
    free(vectors);
    return found;
}

static uint64_t train(size_t seed) {
    uint32_t tokens[24];
    static const size_t offsets[] = {0, 10, 24};
    float loss = 0;
    mc_lora_trainer *trainer = NULL;
    for (size_t i = 0; i < 24; i++) tokens[i] = (uint32_t)(10 + (i * 7 + seed) % 200);
    MUST(mc_lora_trainer_new(coder, NULL, NULL, &trainer, NULL));
    uint64_t found = START;
    for (size_t i = 0; i < 2; i++) {
        MUST(mc_lora_trainer_train_step(trainer, tokens, NULL, offsets, 2, &loss, NULL));
        found = hash(found, &loss, sizeof loss);
    }
    mc_lora_trainer_free(trainer);
    return found;
}

// A training that stops, is written, and goes on from there.
static uint64_t resume(size_t seed) {
    struct place place = new_place();
    mc_dataset *dataset = mc_dataset_new();
    mc_train_options *options = mc_train_options_new();
    mc_lora_trainer *trainer = NULL, *resumed = NULL;
    uint64_t step, found = START;
    double learning_rate;
    float grad_norm;
    for (size_t i = 0; i < SEEDS; i++) MUST(mc_dataset_add_text(dataset, prompts[i], strlen(prompts[i]), NULL));
    mc_train_options_set_seed(options, seed);
    mc_train_options_set_batch_size(options, 2);
    mc_train_options_set_max_steps(options, 1);
    MUST(mc_lora_trainer_new(coder, NULL, options, &trainer, NULL));
    MUST(mc_lora_trainer_train(trainer, dataset, NULL, NULL, NULL, NULL));
    MUST(mc_lora_trainer_save(trainer, place.path, NULL));
    mc_lora_trainer_free(trainer);
    mc_train_options_set_max_steps(options, 2);
    MUST(mc_lora_trainer_resume(coder, place.path, options, &resumed, NULL));
    MUST(mc_lora_trainer_train(resumed, dataset, dataset, NULL, NULL, NULL));
    MUST(mc_lora_trainer_last_update(resumed, &step, &learning_rate, &grad_norm, NULL));
    mc_lora_trainer_free(resumed);
    mc_train_options_free(options);
    mc_dataset_free(dataset);
    clear(&place);
    return hash(hash(found, &step, sizeof step), &grad_norm, sizeof grad_norm);
}

// An adapter is written, read, and becomes a part of another model.
static uint64_t merge(size_t seed) {
    struct place place = new_place();
    mc_lora *read = NULL;
    mc_model *merged = NULL;
    mc_generation *generation = NULL;
    mc_generate_options *options = greedy(6);
    MUST(mc_lora_save(adapter, place.path, NULL));
    MUST(mc_lora_load(coder, place.path, &read, NULL));
    MUST(mc_model_merge(coder, read, (float)(seed + 1), &merged, NULL));
    MUST(mc_generate(merged, prompts[seed], strlen(prompts[seed]), options, &generation, NULL));
    uint64_t found = mc_lora_parameter_count(read);
    mc_lora_free(read);
    mc_model_free(merged);
    mc_generate_options_free(options);
    clear(&place);
    return found + generation_of(generation);
}

static uint64_t stream(size_t seed) {
    mc_tokenizer *tokenizer = NULL;
    mc_text_stream *stream = NULL;
    mc_string *text = NULL;
    uint64_t found = START;
    MUST(mc_model_tokenizer(seed % 2 ? quantised : coder, &tokenizer, NULL));
    MUST(mc_text_stream_new(tokenizer, &stream, NULL));
    mc_tokenizer_free(tokenizer);
    for (uint32_t i = 0; i <= 60; i++) {
        if (i < 60) MUST(mc_text_stream_push(stream, (uint32_t)(seed + i * 31) % 1000, &text, NULL));
        else MUST(mc_text_stream_finish(stream, &text, NULL));
        found = hash(found, mc_string_data(text), mc_string_len(text));
        mc_string_free(text);
    }
    mc_text_stream_free(stream);
    return found;
}

static uint64_t chat(size_t seed) {
    mc_chat *chat = mc_chat_new();
    mc_string *text = NULL;
    mc_tokens *tokens = NULL;
    mc_tokenizer *tokenizer = NULL;
    MUST(mc_chat_add(chat, "user", prompts[seed], strlen(prompts[seed]), NULL));
    MUST(mc_model_render_chat(coder, chat, true, &text, NULL));
    MUST(mc_model_tokenizer(coder, &tokenizer, NULL));
    MUST(mc_tokenizer_encode(tokenizer, mc_string_data(text), mc_string_len(text), false, &tokens, NULL));
    uint64_t found = hash(START, mc_tokens_data(tokens), mc_tokens_len(tokens) * sizeof(uint32_t));
    mc_tokens_free(tokens);
    mc_tokenizer_free(tokenizer);
    mc_string_free(text);
    mc_chat_free(chat);
    return found;
}

static uint64_t load(size_t seed) {
    mc_model *model = NULL;
    mc_model_options *options = mc_model_options_new();
    if (seed % 2) mc_model_options_set_quantization(options, "q8_0");
    MUST(mc_model_load(seed < 2 ? "models/tiny-coder" : "models/tiny-embed", options, &model, NULL));
    uint64_t found = mc_model_parameter_count(model);
    mc_model_options_free(options);
    mc_model_free(model);
    return found;
}

static const struct {
    const char *name;
    uint64_t (*run)(size_t seed);
} operations[] = {
    {"generate", generate},
    {"generate quantised", generate_quantised},
    {"conform", conform},
    {"cancelled", cancelled},
    {"session", session},
    {"answer two", answer_two},
    {"converse", converse},
    {"embed", embed},
    {"rerank", rerank},
    {"similarity", similarity},
    {"train", train},
    {"resume", resume},
    {"merge", merge},
    {"stream", stream},
    {"chat", chat},
    {"load", load},
};
#define OPERATIONS (sizeof operations / sizeof *operations)

static uint64_t expected[OPERATIONS][SEEDS];
static atomic_int is_over;
static atomic_size_t done, wrong;

static void *work(void *argument) {
    uint64_t random = (uint64_t)(size_t)argument * 0x9e3779b97f4a7c15u + 1;
    while (!is_over) {
        random = random * 6364136223846793005u + 1442695040888963407u;
        size_t which = (size_t)(random >> 33) % OPERATIONS, seed = (size_t)(random >> 50) % SEEDS;
        if (operations[which].run(seed) != expected[which][seed]) {
            wrong++;
            fprintf(stderr, "%s %zu: not what one thread gets\n", operations[which].name, seed);
        }
        done++;
    }
    return NULL;
}

// What the process holds, in bytes; 0 where the system does not say.
static size_t memory(void) {
    unsigned long pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    if (file == NULL) return 0;
    if (fscanf(file, "%*u %lu", &pages) != 1) pages = 0;
    fclose(file);
    return pages * (size_t)sysconf(_SC_PAGESIZE);
}

// The most that the process holds within so many seconds: at one moment it depends on what runs just then.
static size_t most_memory(double seconds) {
    static const struct timespec pause = {0, 20000000};
    struct timespec now, begin;
    size_t most = 0;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    do {
        size_t held = memory();
        if (held > most) most = held;
        nanosleep(&pause, NULL);
        clock_gettime(CLOCK_MONOTONIC, &now);
    } while ((double)(now.tv_sec - begin.tv_sec) + (double)(now.tv_nsec - begin.tv_nsec) / 1e9 < seconds);
    return most;
}

// An adapter that changes what the model says.
static mc_lora *trained(void) {
    static const size_t offsets[] = {0, 24};
    uint32_t tokens[24];
    float loss;
    mc_lora *lora = NULL;
    mc_lora_trainer *trainer = NULL;
    mc_train_options *options = mc_train_options_new();
    mc_train_options_set_learning_rate(options, 0.02);
    for (uint32_t i = 0; i < 24; i++) tokens[i] = 10 + i * 7 % 200;
    MUST(mc_lora_trainer_new(coder, NULL, options, &trainer, NULL));
    for (size_t i = 0; i < 3; i++) MUST(mc_lora_trainer_train_step(trainer, tokens, NULL, offsets, 1, &loss, NULL));
    MUST(mc_lora_trainer_adapter(trainer, &lora, NULL));
    mc_lora_trainer_free(trainer);
    mc_train_options_free(options);
    return lora;
}

int main(int argc, char **argv) {
    double seconds = argc > 1 ? strtod(argv[1], NULL) : 3600;
    size_t threads = argc > 2 ? strtoul(argv[2], NULL, 10) : 8;
    pthread_t ids[64];
    if (!(seconds > 0) || threads < 1 || threads > 64 || mkdtemp(folder) == NULL) return 2;
    MUST(mc_model_load("models/tiny-coder", NULL, &coder, NULL));
    MUST(mc_model_load("tests/golden/gguf/tiny-coder-Q4_K_S.gguf", NULL, &quantised, NULL));
    MUST(mc_model_load("models/tiny-embed", NULL, &embedder, NULL));
    MUST(mc_model_load("tests/golden/rerankers/bert", NULL, &reranker, NULL));
    adapter = trained();
    for (size_t i = 0; i < OPERATIONS; i++) {
        for (size_t seed = 0; seed < SEEDS; seed++) expected[i][seed] = operations[i].run(seed);
    }
    for (size_t i = 0; i < threads; i++) {
        if (pthread_create(&ids[i], NULL, work, (void *)(i + 1)) != 0) return 2;
    }
    // By the first half everything has run at once that will.
    size_t before = most_memory(seconds / 2), halfway = done, after = most_memory(seconds / 2);
    is_over = 1;
    for (size_t i = 0; i < threads; i++) pthread_join(ids[i], NULL);
    mc_lora_free(adapter);
    mc_model_free(coder);
    mc_model_free(quantised);
    mc_model_free(embedder);
    mc_model_free(reranker);
    rmdir(folder);
    size_t grown = after > before ? after - before : 0, left = mc_live_objects();
    printf("%zu operations by %zu threads, %zu of them wrong; %zu MiB at most, of which %zu came after the first %zu; %zu objects left\n", (size_t)done,
           threads, (size_t)wrong, after >> 20, grown >> 20, halfway, left);
    return wrong > 0 || left > 0 || (grown > LEAST_GROWTH && grown > before / 10);
}
