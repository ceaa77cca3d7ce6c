// Operations in a process whose address space ends: at each limit they end with their result or with MC_ERROR_OUT_OF_MEMORY, and never
// does one end the process. A model is loaded in a process of its own at each of 121 limits, for what is made once in a process; each other
// operation walks up its limits in one.
#define _GNU_SOURCE
#include "operation.h"

#include <malloc.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#define MB ((size_t)1 << 20)

static mc_model *coder, *embedder;
static mc_error *error;
static char folder[64];
// Inputs, made before there is a limit.
static char *text, *lines, *messages, *tools;
static size_t text_len, messages_len, tools_len;

static mc_status load(void) { return mc_model_load("models/tiny-coder", NULL, &h.model, &error); }

static mc_status load_gguf(void) { return mc_model_load("tests/golden/gguf/tiny-coder-Q4_K_S.gguf", NULL, &h.model, &error); }

static mc_status encode_of(size_t len) {
    TRY(mc_model_tokenizer(coder, &h.tokenizer, &error));
    TRY(mc_tokenizer_encode(h.tokenizer, text, len, true, &h.tokens, &error));
    TRY(mc_tokenizer_decode(h.tokenizer, mc_tokens_data(h.tokens), mc_tokens_len(h.tokens), true, &h.string, &error));
    return MC_OK;
}
static mc_status encode(void) { return encode_of(text_len / 20); }
static mc_status encode_long(void) { return encode_of(text_len); }

static mc_status read_lines(void) { return mc_dataset_load_jsonl(lines, &h.dataset, &error); }

static mc_status read_chat(void) {
    TRY(mc_chat_from_json(messages, messages_len, &h.chat, &error));
    TRY(mc_chat_add(h.chat, "user", text, text_len, &error));
    TRY(mc_chat_json(h.chat, &h.string, &error));
    return MC_OK;
}

static mc_status read_tools(void) {
    h.chat = mc_chat_new();
    return mc_chat_set_tools_json(h.chat, tools, tools_len, &error);
}

static mc_status render(void) {
    static const char values[] = "{% set s = 'a b' * 200000 %}{% set l = [1] * 50000 %}{{ s|upper ~ s }}{{ (l + [2] + l)|length }}"
                                 "{% for w in s.split()[:50000] %}{{ w }}{% endfor %}{% for m in messages %}{{ m.content|trim }}{% endfor %}";
    h.chat = mc_chat_new();
    TRY(mc_chat_set_template(h.chat, values, strlen(values), &error));
    TRY(mc_chat_add(h.chat, "user", text, text_len, &error));
    TRY(mc_model_render_chat(coder, h.chat, false, &h.string, &error));
    return MC_OK;
}

static mc_status generate(void) {
    h.options = mc_generate_options_new();
    mc_generate_options_set_max_tokens(h.options, 3);
    return mc_generate(coder, "What does `Vec::push` do?", 25, h.options, &h.generation, &error);
}

static mc_status embed(void) {
    static float vectors[8 * 4096];
    const char *texts[8];
    size_t lens[8];
    for (int i = 0; i < 8; i++) texts[i] = text + i, lens[i] = text_len / 20;
    return mc_embed_batch(embedder, texts, lens, 8, NULL, vectors, 8 * mc_model_embed_dim(embedder, NULL), &error);
}

static mc_status train(void) {
    float loss;
    return train_step(coder, &error, &loss);
}

static mc_status session(void) {
    char path[128];
    snprintf(path, sizeof path, "%s/session", folder);
    TRY(mc_session_new(coder, 0, &h.session, &error));
    TRY(mc_session_append(h.session, text, 400, NULL, &error));
    TRY(mc_session_save(h.session, path, &error));
    TRY(mc_session_load(coder, path, &h.second, &error));
    return MC_OK;
}

static const struct {
    const char *name;
    mc_status (*run)(void);
    // In MB: up to where, and in what steps. Each limit in a process of its own?
    size_t most, step;
    int is_alone;
} operations[] = {
    {"load", load, 120, 1, 1},         {"load GGUF", load_gguf, 80, 4, 0}, {"encode", encode, 80, 4, 0},
    {"encode 2 MB", encode_long, 160, 40, 0}, {"read lines", read_lines, 40, 2, 0}, {"read a conversation", read_chat, 120, 4, 0},
    {"read tools", read_tools, 120, 4, 0},   {"render", render, 120, 4, 0},  {"generate", generate, 40, 2, 0},
    {"embed", embed, 80, 4, 0},        {"train", train, 80, 10, 0},         {"save and load a session", session, 40, 2, 0},
};

static size_t address_space(void) {
    size_t pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    if (file == NULL || fscanf(file, "%zu", &pages) != 1) _exit(3);
    fclose(file);
    return pages * (size_t)sysconf(_SC_PAGESIZE);
}

static void limit(rlim_t bytes) {
    struct rlimit now;
    if (getrlimit(RLIMIT_AS, &now) != 0) _exit(3);
    now.rlim_cur = bytes;
    if (setrlimit(RLIMIT_AS, &now) != 0) _exit(3);
}

// How often an operation had its result and how often there was no memory; where it is, for whoever waits for it.
struct walk {
    size_t at, done, refused, wrong;
};

static void walk(size_t operation, size_t from, size_t to, int out) {
    struct walk walk = {0, 0, 0, 0};
    if (!operations[operation].is_alone && (mc_model_load("models/tiny-coder", NULL, &coder, &error) != MC_OK ||
                                            mc_model_load("models/tiny-embed", NULL, &embedder, &error) != MC_OK))
        _exit(3);
    for (walk.at = from; walk.at <= to; walk.at += operations[operation].step) {
        if (write(out, &walk, sizeof walk) != sizeof walk) _exit(3);
        malloc_trim(0);
        limit(address_space() + walk.at * MB);
        mc_status status = operations[operation].run();
        free_things();
        limit(RLIM_INFINITY);
        walk.done += status == MC_OK;
        walk.refused += status == MC_ERROR_OUT_OF_MEMORY;
        if (status != MC_OK && status != MC_ERROR_OUT_OF_MEMORY) {
            printf("%s at +%zu MB: status %d: %s\n", operations[operation].name, walk.at, (int)status, mc_error_message(error));
            walk.wrong++;
        }
        mc_error_free(error);
        error = NULL;
    }
    // With all of it, it works.
    if (operations[operation].run() != MC_OK) walk.wrong++;
    free_things();
    if (write(out, &walk, sizeof walk) != sizeof walk) _exit(3);
    fflush(stdout);
    _exit(0);
}

// One process: what it came to, or where it ended.
static int run(size_t operation, size_t from, size_t to, struct walk *sum) {
    int ends[2], status;
    struct walk last = {0, 0, 0, 1}, next;
    if (pipe(ends) != 0) return 0;
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) walk(operation, from, to, ends[1]);
    close(ends[1]);
    while (read(ends[0], &next, sizeof next) == sizeof next) last = next;
    close(ends[0]);
    if (child < 0 || waitpid(child, &status, 0) != child) return 0;
    sum->done += last.done, sum->refused += last.refused, sum->wrong += last.wrong;
    if (WIFSIGNALED(status)) printf("%s at +%zu MB: ended by signal %d\n", operations[operation].name, last.at, WTERMSIG(status));
    else if (WEXITSTATUS(status) != 0) printf("%s at +%zu MB: ended with %d\n", operations[operation].name, last.at, WEXITSTATUS(status));
    return status == 0;
}

int main(int argc, char **argv) {
    int passed = 0, failed = 0;
    size_t ignored, refused = 0;
    char path[96];
    strcpy(folder, "/tmp/limits_XXXXXX");
    if (mkdtemp(folder) == NULL) return 2;
    text = repeated("", "let x = 10; // a line of it\n", 72000, "\n", &text_len);
    messages = repeated("[", "{\"role\": \"user\", \"content\": \"a\\n\"},", 20000, "]", &messages_len);
    tools = repeated("[", "{\"type\": \"function\", \"function\": {\"name\": \"f\", \"parameters\": {\"enum\": [1, 2]}}},", 10000, "]", &tools_len);
    char *all = repeated("", "{\"prompt\": \"a question\", \"completion\": \"an answer\"}\n", 50000, "\n", &ignored);
    snprintf(path, sizeof path, "%s/lines.jsonl", folder);
    lines = path;
    FILE *file = fopen(path, "w");
    if (file == NULL || fwrite(all, ignored, 1, file) != 1 || fclose(file) != 0) return 2;
    free(all);
    for (size_t i = 0; i < sizeof operations / sizeof *operations; i++) {
        struct walk sum = {0, 0, 0, 0};
        int is_good = 1;
        if (argc > 1 && strcmp(argv[1], operations[i].name) != 0) continue;
        if (operations[i].is_alone) {
            for (size_t at = 0; at <= operations[i].most; at += operations[i].step) is_good &= run(i, at, at, &sum);
        } else {
            is_good = run(i, 0, operations[i].most, &sum);
        }
        is_good &= sum.wrong == 0;
        refused += sum.refused;
        printf("%s: %zu times done, %zu times no memory\n", operations[i].name, sum.done, sum.refused);
        if (is_good) passed++;
        else failed++;
    }
    // Some work in what the process has free already; not all of them.
    if (refused == 0) failed++;
    char command[96];
    snprintf(command, sizeof command, "rm -rf %s", folder);
    if (system(command) != 0) return 2;
    free(text), free(messages), free(tools);
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}
