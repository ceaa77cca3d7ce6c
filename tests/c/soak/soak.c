// Everything at once, for long: soak SECONDS [THREADS]. Threads share a model, an embedder, an adapter and cancel flags, and do one
// operation after another in a seeded order. Each gives what it gave one thread alone, to the bit; memory does not grow; nothing is
// left when they have ended.
#include "../check.h"

#include <stdatomic.h>
#include <time.h>

#define SEEDS 4
#define LEAST_GROWTH (64u << 20) // what allocators keep for threads

static mc_model *coder, *embedder;
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

static uint64_t session(size_t seed) {
    mc_session *session = NULL, *fork = NULL, *read = NULL;
    char path[128];
    static _Atomic size_t count;
    snprintf(path, sizeof path, "%s/session-%zu", folder, (size_t)count++);
    MUST(mc_session_new(coder, 0, &session, NULL));
    MUST(mc_session_append(session, prompts[seed], strlen(prompts[seed]), NULL, NULL));
    if (seed % 2) MUST(mc_session_set_lora(session, adapter, 0.5f, NULL));
    MUST(mc_session_fork(session, &fork, NULL));
    MUST(mc_session_append(fork, "x", 1, NULL, NULL));
    uint64_t found = logits_of(session) ^ logits_of(fork);
    MUST(mc_session_save(session, path, NULL));
    MUST(mc_session_load(coder, path, &read, NULL));
    if (seed % 2) MUST(mc_session_set_lora(read, adapter, 0.5f, NULL));
    found += logits_of(read);
    MUST(mc_session_truncate(read, mc_session_position(read) / 2, NULL));
    found += logits_of(read);
    remove(path);
    mc_session_free(session);
    mc_session_free(fork);
    mc_session_free(read);
    return found;
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
} operations[] = {{"generate", generate}, {"conform", conform}, {"cancelled", cancelled}, {"session", session}, {"embed", embed},
                  {"train", train},       {"chat", chat},       {"load", load}};
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

static void pause_for(double seconds) {
    struct timespec time = {(time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9)};
    nanosleep(&time, NULL);
}

int main(int argc, char **argv) {
    double seconds = argc > 1 ? strtod(argv[1], NULL) : 3600;
    size_t threads = argc > 2 ? strtoul(argv[2], NULL, 10) : 8;
    mc_lora_trainer *trainer = NULL;
    pthread_t ids[64];
    if (!(seconds > 0) || threads < 1 || threads > 64 || mkdtemp(folder) == NULL) return 2;
    MUST(mc_model_load("models/tiny-coder", NULL, &coder, NULL));
    MUST(mc_model_load("models/tiny-embed", NULL, &embedder, NULL));
    MUST(mc_lora_trainer_new(coder, NULL, NULL, &trainer, NULL));
    MUST(mc_lora_trainer_adapter(trainer, &adapter, NULL));
    mc_lora_trainer_free(trainer);
    for (size_t i = 0; i < OPERATIONS; i++) {
        for (size_t seed = 0; seed < SEEDS; seed++) expected[i][seed] = operations[i].run(seed);
    }
    for (size_t i = 0; i < threads; i++) {
        if (pthread_create(&ids[i], NULL, work, (void *)(i + 1)) != 0) return 2;
    }
    // By the first half everything has run at once that will.
    pause_for(seconds / 2);
    size_t before = memory(), halfway = done;
    pause_for(seconds / 2);
    size_t after = memory();
    is_over = 1;
    for (size_t i = 0; i < threads; i++) pthread_join(ids[i], NULL);
    mc_lora_free(adapter);
    mc_model_free(coder);
    mc_model_free(embedder);
    rmdir(folder);
    size_t grown = after > before ? after - before : 0, left = mc_live_objects();
    printf("%zu operations by %zu threads, %zu of them wrong; %zu MiB, of which %zu came after the first %zu; %zu objects left\n", (size_t)done,
           threads, (size_t)wrong, after >> 20, grown >> 20, halfway, left);
    return wrong > 0 || left > 0 || (grown > LEAST_GROWTH && grown > before / 10);
}
