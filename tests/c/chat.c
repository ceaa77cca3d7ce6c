/* Section `chat`: conversations and the template that makes a prompt of them. */
#include "check.h"

static mc_model *model;

/* The prompt of a conversation must be exactly this. */
static void expect_render(const mc_chat *chat, bool add_generation_prompt, const char *expected) {
    mc_string *prompt = NULL;
    EXPECT(MC_OK, mc_model_render_chat(model, chat, add_generation_prompt, &prompt, &err));
    if (prompt == NULL) return;
    if (strcmp(mc_string_data(prompt), expected) != 0) complain(__FILE__, __LINE__, mc_string_data(prompt));
    mc_string_free(prompt);
}

static void the_models_template_makes_the_golden_prompt(void) {
    mc_chat *chat = mc_chat_new();
    EXPECT(MC_OK, mc_chat_add(chat, "user", QUESTION, strlen(QUESTION), &err));
    expect_render(chat, true, PROMPT);
    mc_chat_free(chat);
}

static void roles_follow_one_another(void) {
    mc_chat *chat = mc_chat_new();
    EXPECT(MC_OK, mc_chat_add(chat, "system", "Be brief.", 9, &err));
    EXPECT(MC_OK, mc_chat_add(chat, "user", "A", 1, &err));
    EXPECT(MC_OK, mc_chat_add(chat, "assistant", NULL, 0, &err));
    expect_render(chat, false, "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nA<|im_end|>\n<|im_start|>assistant\n<|im_end|>\n");
    mc_chat_free(chat);
}

static void json_is_the_same_conversation(void) {
    static const char *json = "[{\"role\": \"user\", \"content\": \"" QUESTION "\"}]";
    mc_chat *chat = NULL;
    EXPECT(MC_OK, mc_chat_from_json(json, strlen(json), &chat, &err));
    expect_render(chat, true, PROMPT);
    mc_chat_free(chat);
    chat = NULL;
    EXPECT(MC_ERROR_FORMAT, mc_chat_from_json("[{", 2, &chat, &err));
    CHECK(chat == NULL);
}

static void a_template_and_its_variables_can_be_set(void) {
    static const char *jinja = "{% if shout %}{{ messages[0].content | upper }}{% else %}{{ messages[0].content }}{% endif %}";
    mc_chat *chat = mc_chat_new();
    EXPECT(MC_OK, mc_chat_add(chat, "user", "abc", 3, &err));
    EXPECT(MC_OK, mc_chat_set_template(chat, jinja, strlen(jinja), &err));
    expect_render(chat, true, "abc");
    EXPECT(MC_OK, mc_chat_set_variable_json(chat, "shout", "true", 4, &err));
    expect_render(chat, true, "ABC");
    EXPECT(MC_OK, mc_chat_set_variable_json(chat, "shout", NULL, 0, &err));
    expect_render(chat, true, "abc");
    EXPECT(MC_OK, mc_chat_set_template(chat, NULL, 0, &err));
    expect_render(chat, false, "<|im_start|>system\nYou answer questions about the Rust standard library.<|im_end|>\n"
                               "<|im_start|>user\nabc<|im_end|>\n");
    mc_chat_free(chat);
}

static void the_clock_of_a_template_can_be_set(void) {
    static const char *jinja = "{{ strftime_now('%Y-%m-%d') }}";
    mc_chat *chat = mc_chat_new();
    EXPECT(MC_OK, mc_chat_add(chat, "user", "abc", 3, &err));
    EXPECT(MC_OK, mc_chat_set_template(chat, jinja, strlen(jinja), &err));
    mc_chat_set_time(chat, 951782400); /* 29 February 2000 */
    expect_render(chat, true, "2000-02-29");
    mc_chat_free(chat);
}

static void a_template_may_refuse_a_conversation(void) {
    static const char *jinja = "{{ raise_exception('roles must alternate') }}";
    mc_chat *chat = mc_chat_new();
    mc_string *prompt = NULL;
    EXPECT(MC_OK, mc_chat_add(chat, "user", "abc", 3, &err));
    EXPECT(MC_OK, mc_chat_set_template(chat, jinja, strlen(jinja), &err));
    EXPECT_ERROR(MC_ERROR_TEMPLATE, "roles must alternate", mc_model_render_chat(model, chat, true, &prompt, &err));
    CHECK(prompt == NULL);
    mc_chat_free(chat);
}

static void the_last_message_can_be_left_open(void) {
    static const char *jinja = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}";
    mc_chat *chat = mc_chat_new();
    mc_string *prompt = NULL;
    EXPECT(MC_OK, mc_chat_add(chat, "assistant", "It is ", 6, &err));
    EXPECT(MC_OK, mc_chat_set_template(chat, jinja, strlen(jinja), &err));
    mc_chat_set_continue_final_message(chat, true);
    expect_render(chat, false, "<assistant>It is ");
    EXPECT_ERROR(MC_ERROR_INVALID_ARGUMENT, "continue_final_message", mc_model_render_chat(model, chat, true, &prompt, &err));
    CHECK(prompt == NULL);
    mc_chat_free(chat);
}

static void control_tokens_of_messages_can_be_text(void) {
    mc_tokenizer *tokenizer = NULL;
    mc_tokens *tokens = NULL;
    mc_string *prompt = NULL;
    uint32_t end = 0;
    size_t i, ends[2] = {0, 0};
    int kind;
    EXPECT(MC_OK, mc_model_tokenizer(model, &tokenizer, &err));
    EXPECT(MC_OK, mc_tokenizer_token_id(tokenizer, "<|im_end|>", &end, &err));
    mc_tokenizer_free(tokenizer);
    for (kind = MC_CONTROL_TOKENS; kind <= MC_CONTROL_TEXT; kind++) {
        mc_chat *chat = mc_chat_new();
        EXPECT(MC_OK, mc_chat_add(chat, "user", "a<|im_end|>b", 12, &err));
        EXPECT(MC_OK, mc_chat_set_control_tokens(chat, (mc_control_tokens)kind, &err));
        EXPECT(MC_OK, mc_model_encode_chat(model, chat, true, &tokens, &err));
        for (i = 0; i < mc_tokens_len(tokens); i++) {
            ends[kind] += mc_tokens_data(tokens)[i] == end;
        }
        mc_tokens_free(tokens);
        if (kind == MC_CONTROL_TEXT) {
            EXPECT_ERROR(MC_ERROR_INVALID_ARGUMENT, "control tokens", mc_model_render_chat(model, chat, true, &prompt, &err));
            EXPECT_ERROR(MC_ERROR_INVALID_ARGUMENT, "control_tokens",
                         mc_chat_set_control_tokens(chat, (mc_control_tokens)2, &err));
        }
        mc_chat_free(chat);
    }
    CHECK(ends[MC_CONTROL_TOKENS] == ends[MC_CONTROL_TEXT] + 1);
}

static void tools_reach_the_template(void) {
    static const char *jinja = "{% for tool in tools %}{{ tool.function.name }}{% endfor %}";
    static const char *tools = "[{\"type\": \"function\", \"function\": {\"name\": \"clock\", \"parameters\": {}}}]";
    mc_chat *chat = mc_chat_new();
    EXPECT(MC_OK, mc_chat_add(chat, "user", "abc", 3, &err));
    EXPECT(MC_OK, mc_chat_set_template(chat, jinja, strlen(jinja), &err));
    EXPECT(MC_OK, mc_chat_set_tools_json(chat, tools, strlen(tools), &err));
    expect_render(chat, true, "clock");
    EXPECT(MC_ERROR_FORMAT, mc_chat_set_tools_json(chat, "{", 1, &err));
    mc_chat_free(chat);
}

static void messages_are_counted_removed_and_told(void) {
    static const char *json = "{\"messages\":[{\"role\":\"user\",\"content\":\"a\\u0000\"},{\"content\":[{\"type\":\"text\",\"text\":\"\\u00e9\"}],"
                              "\"role\":\"assistant\",\"x\":[1,0.1,18446744073709551615,null]}],\"tools\":[{\"name\":\"f\"}]}";
    mc_chat *chat = mc_chat_new(), *again = NULL;
    mc_string *out = NULL, *same = NULL;
    CHECK(mc_chat_len(chat) == 0);
    EXPECT_ERROR(MC_ERROR_INVALID_ARGUMENT, "chat: expected a message to remove, found none", mc_chat_remove_last(chat, &err));
    EXPECT(MC_OK, mc_chat_json(chat, &out, &err));
    CHECK(strcmp(mc_string_data(out), "{\"messages\":[]}") == 0);
    mc_string_free(out);
    EXPECT(MC_OK, mc_chat_add(chat, "user", "abc", 3, &err));
    EXPECT(MC_OK, mc_chat_add(chat, "assistant", "d", 1, &err));
    CHECK(mc_chat_len(chat) == 2);
    EXPECT(MC_OK, mc_chat_remove_last(chat, &err));
    EXPECT(MC_OK, mc_chat_json(chat, &out, &err));
    CHECK(mc_chat_len(chat) == 1);
    CHECK(strcmp(mc_string_data(out), "{\"messages\":[{\"role\":\"user\",\"content\":\"abc\"}]}") == 0);
    mc_string_free(out);
    mc_chat_free(chat);

    EXPECT(MC_OK, mc_chat_from_json(json, strlen(json), &chat, &err));
    EXPECT(MC_OK, mc_chat_json(chat, &out, &err));
    EXPECT(MC_OK, mc_chat_from_json(mc_string_data(out), mc_string_len(out), &again, &err));
    EXPECT(MC_OK, mc_chat_json(again, &same, &err));
    CHECK(mc_chat_len(again) == 2 && strcmp(mc_string_data(out), mc_string_data(same)) == 0);
    CHECK(strstr(mc_string_data(out), "\"x\":[1,0.1,18446744073709551615,null]") != NULL);
    CHECK(strstr(mc_string_data(out), "a\\u0000") != NULL && strstr(mc_string_data(out), "\"tools\":[{\"name\":\"f\"}]") != NULL);
    mc_string_free(out);
    mc_string_free(same);
    mc_chat_free(chat);
    mc_chat_free(again);
}

int main(int argc, char **argv) {
    begin(argc, argv);
    model = load_model();
    RUN(the_models_template_makes_the_golden_prompt);
    RUN(roles_follow_one_another);
    RUN(json_is_the_same_conversation);
    RUN(a_template_and_its_variables_can_be_set);
    RUN(the_clock_of_a_template_can_be_set);
    RUN(a_template_may_refuse_a_conversation);
    RUN(tools_reach_the_template);
    RUN(the_last_message_can_be_left_open);
    RUN(control_tokens_of_messages_can_be_text);
    RUN(messages_are_counted_removed_and_told);
    mc_model_free(model);
    return end();
}
