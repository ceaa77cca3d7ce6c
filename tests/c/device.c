/* Section `device`: which devices there are, and the gate that an app in the background closes. */
#include "check.h"

static void the_cpu_is_always_there(void) {
    mc_device *device = NULL;
    CHECK(mc_device_count(MC_DEVICE_CPU) == 1);
    CHECK(mc_device_count(MC_DEVICE_AUTO) == 1);
    EXPECT(MC_OK, mc_device_new(MC_DEVICE_CPU, 0, &device, &err));
    CHECK(mc_device_kind_of(device) == MC_DEVICE_CPU);
    CHECK(mc_device_name(device)[0] != '\0');
    EXPECT(MC_OK, mc_device_synchronize(device, &err));
    mc_device_free(device);
}

static void auto_opens_a_real_device(void) {
    mc_device *device = NULL;
    EXPECT(MC_OK, mc_device_new(MC_DEVICE_AUTO, 0, &device, &err));
    CHECK(mc_device_kind_of(device) != MC_DEVICE_AUTO);
    mc_device_free(device);
}

static void memory_is_used_and_total(void) {
    mc_device *device = NULL;
    uint64_t used = 0, total = 0;
    EXPECT(MC_OK, mc_device_new(MC_DEVICE_CPU, 0, &device, &err));
    EXPECT(MC_OK, mc_device_memory(device, &used, &total, &err));
    CHECK(used > 0 && used <= total);
    mc_device_free(device);
}

static void a_device_that_is_not_there_is_an_error(void) {
    mc_device *device = NULL;
    EXPECT(MC_ERROR_NOT_FOUND, mc_device_new(MC_DEVICE_CPU, 7, &device, &err));
    CHECK(device == NULL);
    EXPECT(MC_ERROR_INVALID_ARGUMENT, mc_device_new((mc_device_kind)99, 0, &device, &err));
    CHECK(device == NULL);
    CHECK(mc_device_count((mc_device_kind)99) == 0);
}

static void a_suspended_device_refuses_work_until_it_is_resumed(void) {
    mc_device *device = NULL;
    mc_model *model = NULL;
    mc_generation *generation = NULL;
    mc_model_options *load = mc_model_options_new();
    mc_generate_options *options = greedy(2);
    EXPECT(MC_OK, mc_device_new(MC_DEVICE_CPU, 0, &device, &err));
    mc_model_options_set_device(load, device);
    EXPECT(MC_OK, mc_model_load(model_path, load, &model, &err));

    EXPECT(MC_OK, mc_device_suspend(device, 1000, &err));
    EXPECT(MC_ERROR_SUSPENDED, mc_generate(model, "fn", 2, options, &generation, &err));
    mc_generation_free(generation);
    generation = NULL;
    mc_device_resume(device);
    EXPECT(MC_OK, mc_generate(model, "fn", 2, options, &generation, &err));

    mc_generation_free(generation);
    mc_generate_options_free(options);
    mc_model_options_free(load);
    mc_model_free(model);
    mc_device_free(device);
}

/* Suspends the device with a token, as another thread might at this time. */
struct interruption {
    mc_device *device;
    struct stream *stream;
};

static int32_t interrupt(void *user_data, const mc_token_event *event) {
    const struct interruption *interruption = user_data;
    stream_add(interruption->stream, event);
    if (event->index == 2) EXPECT(MC_OK, mc_device_suspend(interruption->device, 1000, &err));
    return MC_CONTINUE;
}

static void a_suspended_answer_goes_on_to_the_same_text(void) {
    mc_device *device = NULL;
    mc_model *model = NULL;
    mc_session *session = NULL;
    mc_generation *want = NULL, *generation = NULL;
    const mc_token_event *event = NULL;
    struct stream stream = {0};
    mc_model_options *load = mc_model_options_new();
    mc_generate_options *options = greedy(12);
    mc_generate_options_set_temperature(options, 1.5);
    mc_generate_options_set_seed(options, 7);
    mc_generate_options_set_ignore_eos(options, true);
    EXPECT(MC_OK, mc_device_new(MC_DEVICE_CPU, 0, &device, &err));
    mc_model_options_set_device(load, device);
    EXPECT(MC_OK, mc_model_load(model_path, load, &model, &err));
    EXPECT(MC_OK, mc_generate(model, "fn main", 7, options, &want, &err));

    EXPECT(MC_OK, mc_session_new(model, 0, &session, &err));
    EXPECT(MC_OK, mc_session_append(session, "fn main", 7, NULL, &err));
    struct interruption interruption = {device, &stream};
    EXPECT(MC_ERROR_SUSPENDED, mc_session_generate_stream(session, options, interrupt, &interruption, &generation, &err));
    CHECK(generation == NULL && stream.count == 3);
    EXPECT(MC_ERROR_SUSPENDED, mc_session_next(session, &event, &err));
    mc_device_resume(device);
    mc_status status;
    while ((status = mc_session_next(session, &event, NULL)) == MC_OK) stream_add(&stream, event);
    CHECK(status == MC_DONE && stream.consistent);
    EXPECT(MC_OK, mc_session_end(session, &generation, &err));
    CHECK(strcmp(mc_generation_text(generation), mc_generation_text(want)) == 0);
    CHECK(strcmp(stream.text, mc_generation_text(want)) == 0);

    mc_generation_free(want);
    mc_generation_free(generation);
    mc_session_free(session);
    mc_generate_options_free(options);
    mc_model_options_free(load);
    mc_model_free(model);
    mc_device_free(device);
}

int main(int argc, char **argv) {
    begin(argc, argv);
    RUN(the_cpu_is_always_there);
    RUN(auto_opens_a_real_device);
    RUN(memory_is_used_and_total);
    RUN(a_device_that_is_not_there_is_an_error);
    RUN(a_suspended_device_refuses_work_until_it_is_resumed);
    RUN(a_suspended_answer_goes_on_to_the_same_text);
    return end();
}
