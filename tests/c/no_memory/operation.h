// What operations are made of: one returns the first status that is not MC_OK, and what it has made by then stands in `h`, which
// free_things() frees.
#ifndef OPERATION_H
#define OPERATION_H

#include <metal_candle.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TRY(call) \
    do { \
        mc_status status_of_call = (call); \
        if (status_of_call != MC_OK) return status_of_call; \
    } while (0)

static struct things {
    mc_model *model, *merged;
    mc_model_options *model_options;
    mc_generate_options *options;
    mc_generation *generation;
    mc_session *session, *second;
    mc_chat *chat;
    mc_string *string;
    mc_tokenizer *tokenizer;
    mc_tokens *tokens;
    mc_text_stream *stream;
    mc_dataset *dataset, *lines;
    mc_lora *adapter, *loaded;
    mc_lora_trainer *trainer, *resumed;
    char *texts[4];
} h;

static void free_things(void) {
    mc_model_free(h.model);
    mc_model_free(h.merged);
    mc_model_options_free(h.model_options);
    mc_generate_options_free(h.options);
    mc_generation_free(h.generation);
    mc_session_free(h.session);
    mc_session_free(h.second);
    mc_chat_free(h.chat);
    mc_string_free(h.string);
    mc_tokenizer_free(h.tokenizer);
    mc_tokens_free(h.tokens);
    mc_text_stream_free(h.stream);
    mc_dataset_free(h.dataset);
    mc_dataset_free(h.lines);
    mc_lora_free(h.adapter);
    mc_lora_free(h.loaded);
    mc_lora_trainer_free(h.trainer);
    mc_lora_trainer_free(h.resumed);
    for (int i = 0; i < 4; i++) free(h.texts[i]);
    memset(&h, 0, sizeof h);
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

// A step of training on two sequences.
static mc_status train_step(mc_model *model, mc_error **error, float *loss) {
    uint32_t tokens[64];
    static const size_t offsets[] = {0, 30, 64};
    for (uint32_t i = 0; i < 64; i++) tokens[i] = 10 + i * 7 % 200;
    TRY(mc_lora_trainer_new(model, NULL, NULL, &h.trainer, error));
    return mc_lora_trainer_train_step(h.trainer, tokens, NULL, offsets, 2, loss, error);
}

#endif
