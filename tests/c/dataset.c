/* Section `dataset`: examples to train on, from files and calls. */
#include "check.h"

/* A file with this text; the caller removes it. */
static const char *file_with(const char *text, size_t len) {
    static char path[64];
    strcpy(path, "/tmp/metal-candle-dataset-XXXXXX");
    int descriptor = mkstemp(path);
    CHECK(descriptor >= 0 && write(descriptor, text, len) == (ssize_t)len);
    close(descriptor);
    return path;
}

static mc_dataset *load(const char *text) {
    mc_dataset *dataset = NULL;
    const char *path = file_with(text, strlen(text));
    EXPECT(MC_OK, mc_dataset_load_jsonl(path, &dataset, &err));
    CHECK(remove(path) == 0);
    return dataset;
}

static void every_form_of_a_line_is_an_example(void) {
    mc_dataset *dataset = load("\xEF\xBB\xBF{\"text\": \"The Oru runs north.\"}\r\n"
                               "\n"
                               "{\"prompt\": \"Which way?\", \"completion\": \" North.\"}\n"
                               "{\"messages\": [{\"role\": \"user\", \"content\": \"Which way?\"},"
                               " {\"role\": \"assistant\", \"content\": \"North.\"}], \"tools\": []}\n"
                               "{\"prompt\": [{\"role\": \"user\", \"content\": \"Which way?\"}],"
                               " \"completion\": [{\"role\": \"assistant\", \"content\": \"North.\"}]}");
    CHECK(mc_dataset_len(dataset) == 4);
    mc_dataset_free(dataset);
    dataset = load("");
    CHECK(mc_dataset_len(dataset) == 0);
    mc_dataset_free(dataset);
}

static void expect_refusal(mc_status status, const char *fragment, const char *text, size_t len) {
    mc_dataset *dataset = NULL;
    const char *path = file_with(text, len);
    EXPECT_ERROR(status, fragment, mc_dataset_load_jsonl(path, &dataset, &err));
    CHECK(err != NULL && strstr(mc_error_message(err), path) != NULL);
    CHECK(dataset == NULL);
    CHECK(remove(path) == 0);
}

static void a_line_that_is_no_example_is_named(void) {
    static const char *const lines[][2] = {
        {"{\"text\": \"a\"}\n{\"texts\": \"a\"}", "line 2: expected messages and perhaps tools, prompt and completion, or text"},
        {"{\"text\": \"a\", \"prompt\": \"b\"}", "line 1: expected messages"},
        {"\n{\"text\": 1}", "line 2: text: expected a string, found a number"},
        {"{\"prompt\": \"a\", \"completion\": []}", "line 1: completion: expected a string"},
        {"{\"messages\": [{\"role\": 1}]}", "line 1: messages[0].role: expected a string, found a number"},
        {"{\"text\": \"a\"", "line 1: column 12: expected JSON"},
    };
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) expect_refusal(MC_ERROR_FORMAT, lines[i][1], lines[i][0], strlen(lines[i][0]));
    expect_refusal(MC_ERROR_INVALID_UTF8, "line 1: expected UTF-8, found byte 0xff at offset 2", "{\"\xff\"}", 5);
    mc_dataset *dataset = NULL;
    EXPECT(MC_ERROR_NOT_FOUND, mc_dataset_load_jsonl("no/such/file.jsonl", &dataset, &err));
}

static void examples_are_added_at_the_end(void) {
    mc_dataset *dataset = mc_dataset_new();
    mc_chat *chat = mc_chat_new();
    CHECK(mc_dataset_len(dataset) == 0);
    EXPECT(MC_OK, mc_dataset_add_text(dataset, "The Oru runs north.", 19, &err));
    EXPECT(MC_OK, mc_dataset_add_text(dataset, NULL, 0, &err));
    EXPECT(MC_OK, mc_dataset_add_completion(dataset, "Which way?", 10, " North.", 7, &err));
    EXPECT(MC_OK, mc_dataset_add_completion(dataset, NULL, 0, NULL, 0, &err));
    EXPECT(MC_OK, mc_chat_add(chat, "assistant", "North.", 6, &err));
    EXPECT(MC_OK, mc_dataset_add_chat(dataset, chat, &err));
    CHECK(mc_dataset_len(dataset) == 5);
    EXPECT(MC_ERROR_INVALID_UTF8, mc_dataset_add_text(dataset, "\xff", 1, &err));
    EXPECT_ERROR(MC_ERROR_INVALID_ARGUMENT, "completion", mc_dataset_add_completion(dataset, "a", 1, NULL, 1, &err));
    EXPECT(MC_ERROR_INVALID_ARGUMENT, mc_dataset_add_chat(dataset, null(), &err));
    CHECK(mc_dataset_len(dataset) == 5);
    mc_chat_free(chat);
    mc_dataset_free(dataset);
    mc_dataset_free(NULL);
}

int main(int argc, char **argv) {
    begin(argc, argv);
    RUN(every_form_of_a_line_is_an_example);
    RUN(a_line_that_is_no_example_is_named);
    RUN(examples_are_added_at_the_end);
    return end();
}
