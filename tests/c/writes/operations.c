// Everything that the library writes, on a disk that fails: operations full|read-only|killed STRIDE. Each operation replaces what an
// earlier one has written, and goes through its calls of the system one after another (every STRIDE-th where they are many). Whichever
// fails, or is the process's last, what stands there is the old or the new, whole; a failed call gives MC_ERROR_IO and leaves nothing
// else behind. Runs under fail.c.
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <metal_candle.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static void (*fail_writes)(size_t number, int error, int lasting);
static size_t (*failed_writes)(void);

static mc_error *error;
static mc_model *coder, *ggufs[2];
static char place[128]; // what an operation writes to

// What stands at the place.
enum { NONE, OLD, NEW, BROKEN };

static int of_number(size_t number) { return number == 1 ? OLD : number == 2 ? NEW : BROKEN; }

#define TRY(call) \
    do { \
        if ((status = (call)) != MC_OK) goto out; \
    } while (0)

// From here on calls fail, as `armed` says.
static size_t armed_at;
static int armed_how, armed_lasting;
static size_t fired; // of an operation that has ended
static void on(void) {
    if (armed_at > 0) fail_writes(armed_at, armed_how, armed_lasting);
}

static mc_status write_session(size_t version) {
    static const uint32_t tokens[] = {5, 6};
    mc_session *session = NULL;
    mc_status status;
    TRY(mc_session_new(coder, 0, &session, &error));
    TRY(mc_session_append_tokens(session, tokens, version, NULL, &error));
    on();
    TRY(mc_session_save(session, place, &error));
out:
    fired = failed_writes();
    mc_session_free(session);
    return status;
}

static int read_session(void) {
    mc_session *session = NULL;
    if (mc_session_load(coder, place, &session, &error) != MC_OK) return BROKEN;
    int found = of_number(mc_session_position(session));
    mc_session_free(session);
    return found;
}

static mc_status trained(size_t steps, mc_lora_trainer **trainer) {
    static const uint32_t tokens[] = {10, 20, 30, 40};
    static const size_t offsets[] = {0, 4};
    float loss;
    mc_status status = mc_lora_trainer_new(coder, NULL, NULL, trainer, &error);
    for (size_t i = 0; i < steps && status == MC_OK; i++) status = mc_lora_trainer_train_step(*trainer, tokens, NULL, offsets, 1, &loss, &error);
    return status;
}

static mc_status write_checkpoint(size_t version) {
    mc_lora_trainer *trainer = NULL;
    mc_status status;
    TRY(trained(version, &trainer));
    on();
    TRY(mc_lora_trainer_save(trainer, place, &error));
out:
    fired = failed_writes();
    mc_lora_trainer_free(trainer);
    return status;
}

static int read_checkpoint(void) {
    mc_lora_trainer *trainer = NULL;
    mc_lora *adapter = NULL;
    if (mc_lora_trainer_resume(coder, place, NULL, &trainer, &error) != MC_OK) return BROKEN;
    int found = of_number((size_t)mc_lora_trainer_step_count(trainer));
    mc_lora_trainer_free(trainer);
    // The adapter beside it is one, too.
    if (mc_lora_load(coder, place, &adapter, &error) != MC_OK) return BROKEN;
    mc_lora_free(adapter);
    return found;
}

static mc_status write_adapter(size_t version) {
    mc_lora_trainer *trainer = NULL;
    mc_lora *adapter = NULL;
    mc_status status;
    TRY(trained(version, &trainer));
    TRY(mc_lora_trainer_adapter(trainer, &adapter, &error));
    on();
    TRY(mc_lora_save(adapter, place, &error));
out:
    fired = failed_writes();
    mc_lora_free(adapter);
    mc_lora_trainer_free(trainer);
    return status;
}

// One that was trained for one step, or for two: the bits of what it changes tell.
static int read_adapter(void) {
    static float logits[3][1 << 16];
    mc_lora *read = NULL;
    if (mc_lora_load(coder, place, &read, &error) != MC_OK) return BROKEN;
    for (size_t steps = 0; steps < 3; steps++) {
        mc_lora_trainer *trainer = NULL;
        mc_lora *adapter = steps == 0 ? read : NULL;
        mc_session *session = NULL;
        static const uint32_t tokens[] = {5, 6, 7};
        if (steps > 0 && (trained(steps, &trainer) != MC_OK || mc_lora_trainer_adapter(trainer, &adapter, &error) != MC_OK)) return BROKEN;
        if (mc_session_new(coder, 0, &session, &error) != MC_OK || mc_session_set_lora(session, adapter, 1.0f, &error) != MC_OK ||
            mc_session_append_tokens(session, tokens, 3, NULL, &error) != MC_OK ||
            mc_session_logits(session, logits[steps], mc_model_vocab_size(coder), &error) != MC_OK)
            return BROKEN;
        mc_session_free(session);
        mc_lora_free(adapter);
        mc_lora_trainer_free(trainer);
    }
    size_t bytes = mc_model_vocab_size(coder) * sizeof **logits;
    return memcmp(logits[0], logits[1], bytes) == 0 ? OLD : memcmp(logits[0], logits[2], bytes) == 0 ? NEW : BROKEN;
}

static mc_status write_model(size_t version) {
    if (version == 1) return MC_OK; // a model is never written over another
    on();
    mc_status status = mc_model_save(coder, place, NULL, NULL, NULL, &error);
    fired = failed_writes();
    return status;
}

static int read_model(void) {
    mc_model *model = NULL;
    struct stat found;
    if (stat(place, &found) != 0) return OLD;
    if (mc_model_load(place, NULL, &model, &error) != MC_OK) return BROKEN;
    int same = mc_model_parameter_count(model) == mc_model_parameter_count(coder);
    mc_model_free(model);
    return same ? NEW : BROKEN;
}

// Two models, and what each is when it is written.
static const char *const gguf_paths[] = {"tests/golden/gguf/qwen2-F16.gguf", "tests/golden/gguf/qwen2-Q8_0.gguf"};

static mc_status write_gguf(size_t version) {
    for (size_t i = 1; i <= 2 && version == 1; i++) {
        char reference[300];
        snprintf(reference, sizeof reference, "%s.%zu", place, i);
        mc_status status = mc_model_save_gguf(ggufs[i - 1], reference, NULL, NULL, NULL, &error);
        if (status != MC_OK) return status;
    }
    on();
    mc_status status = mc_model_save_gguf(ggufs[version - 1], place, NULL, NULL, NULL, &error);
    fired = failed_writes();
    return status;
}

static int read_gguf(void) {
    for (size_t version = 1; version <= 2; version++) {
        char command[512];
        snprintf(command, sizeof command, "cmp -s '%s' '%s.%zu'", place, place, version);
        if (system(command) == 0) return of_number(version);
    }
    return BROKEN;
}

static const struct operation {
    const char *name;
    mc_status (*write)(size_t version); // 1, then 2
    int (*read)(void);
    int is_long; // many calls, each after much work
} operations[] = {
    {"session", write_session, read_session, 0},
    {"checkpoint", write_checkpoint, read_checkpoint, 1},
    {"adapter", write_adapter, read_adapter, 1},
    {"model", write_model, read_model, 1},
    {"gguf", write_gguf, read_gguf, 0},
};
#define OPERATIONS (sizeof operations / sizeof *operations)

static void forget(void) {
    mc_error_free(error);
    error = NULL;
}

static int fail(const struct operation *operation, size_t number, const char *what) {
    fprintf(stderr, "%s, call %zu: %s: %s\n", operation->name, number, what, error ? mc_error_message(error) : "no error");
    return 1;
}

// Files and folders in a folder, and in those.
static size_t count(const char *path) {
    DIR *folder = opendir(path);
    size_t found = 0;
    if (folder == NULL) return 0;
    for (struct dirent *entry; (entry = readdir(folder)) != NULL;) {
        char below[1024];
        if (entry->d_name[0] == '.') continue;
        snprintf(below, sizeof below, "%s/%s", path, entry->d_name);
        found += 1 + count(below);
    }
    closedir(folder);
    return found;
}

static void clear(const char *folder) {
    char command[512];
    snprintf(command, sizeof command, "rm -rf '%s' && mkdir '%s'", folder, folder);
    if (system(command) != 0) exit(2);
}

// Whether the process ended by a signal; its exit status otherwise tells whether it was done.
static int is_killed(const char *self, size_t operation, size_t number) {
    char index[16], at[16];
    int status = 0;
    snprintf(index, sizeof index, "%zu", operation);
    snprintf(at, sizeof at, "%zu", number);
    pid_t child = fork();
    if (child == 0) {
        execl(self, self, "once", index, at, place, (char *)NULL);
        _exit(3);
    }
    if (child < 0 || waitpid(child, &status, 0) != child) exit(2);
    if (!WIFSIGNALED(status) && WEXITSTATUS(status) != 0) exit(2);
    return WIFSIGNALED(status);
}

// Goes through the calls of an operation; returns how many were failed at, or 0 if something was wrong.
static size_t through(const char *self, size_t index, const char *folder, int how, size_t stride) {
    const struct operation *operation = &operations[index];
    size_t tried = 0;
    for (size_t number = 1;; number += operation->is_long ? stride : 1) {
        clear(folder);
        forget();
        armed_at = 0;
        if (operation->write(1) != MC_OK) return fail(operation, number, "nothing fails yet"), 0;
        size_t before = count(folder), failed = 0;
        mc_status status = MC_OK;
        if (how == 0) {
            failed = (size_t)is_killed(self, index, number);
        } else {
            armed_at = number, armed_how = how, armed_lasting = tried % 2;
            status = operation->write(2);
            failed = fired;
        }
        if (failed && how != 0 && status != MC_ERROR_IO && status != MC_OK) return fail(operation, number, mc_status_name(status)), 0;
        if (status != MC_OK && count(folder) != before) return fail(operation, number, "something was left behind"), 0;
        forget();
        int found = operation->read();
        if (found != NEW && !(found == OLD && failed && (how == 0 || status != MC_OK))) return fail(operation, number, "neither the old nor the new is there"), 0;
        // What is written next finds nothing in its way.
        armed_at = 0;
        if (found == OLD && (operation->write(2) != MC_OK || operation->read() != NEW)) return fail(operation, number, "nor can it be written again"), 0;
        if (!failed) return tried;
        tried++;
    }
}

int main(int argc, char **argv) {
    *(void **)&fail_writes = dlsym(RTLD_DEFAULT, "fail_writes");
    *(void **)&failed_writes = dlsym(RTLD_DEFAULT, "failed_writes");
    if (fail_writes == NULL || mc_model_load("models/tiny-coder", NULL, &coder, &error) != MC_OK ||
        mc_model_load(gguf_paths[0], NULL, &ggufs[0], &error) != MC_OK || mc_model_load(gguf_paths[1], NULL, &ggufs[1], &error) != MC_OK)
        return 2;
    if (argc == 5 && strcmp(argv[1], "once") == 0) {
        snprintf(place, sizeof place, "%s", argv[4]);
        armed_at = strtoul(argv[3], NULL, 10);
        return operations[strtoul(argv[2], NULL, 10)].write(2) != MC_OK;
    }
    const char *kind = argc == 3 ? argv[1] : "";
    size_t stride = argc == 3 ? strtoul(argv[2], NULL, 10) : 0;
    int how = strcmp(kind, "full") == 0 ? ENOSPC : strcmp(kind, "read-only") == 0 ? EROFS : strcmp(kind, "killed") == 0 ? 0 : -1;
    char folder[] = "/tmp/metal-candle-writes-XXXXXX";
    if (how < 0 || stride == 0 || mkdtemp(folder) == NULL) return 2;
    snprintf(place, sizeof place, "%s/written", folder);
    int wrong = 0;
    for (size_t i = 0; i < OPERATIONS; i++) {
        size_t tried = through(argv[0], i, folder, how, stride);
        printf("%s: %s at %zu calls\n", operations[i].name, kind, tried);
        wrong += tried == 0;
    }
    clear(folder);
    rmdir(folder);
    forget();
    mc_model_free(coder);
    mc_model_free(ggufs[0]);
    mc_model_free(ggufs[1]);
    return wrong != 0;
}
