// What include/metal_candle.hpp promises beyond the C header: ownership, exceptions, callbacks, ranges.

#include <metal_candle.hpp>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <thread>

namespace mc = metal_candle;
namespace fs = std::filesystem;

namespace {

const char *const question = "What does `Vec::push` do?", *const answer = "Appends an element to the back of a collection.";
int passed, failed;
bool failing;

#define CHECK(condition)                                                                                                       \
    do {                                                                                                                       \
        if (!(condition)) {                                                                                                    \
            failing = true;                                                                                                    \
            std::cerr << __FILE__ << ":" << __LINE__ << ": expected " #condition "\n";                                         \
        }                                                                                                                      \
    } while (0)

/** Whether a call throws an `E` for which `is` holds. */
template <class E, class Call, class Is> bool throws(Call &&call, Is &&is) {
    try {
        call();
    } catch (const E &error) {
        return is(error);
    }
    return false;
}

template <class Call> bool throws(mc_status status, Call &&call) {
    return throws<mc::error>(call, [&](const mc::error &error) { return error.status() == status; });
}

struct own_error {};

template <class Call> bool throws_own(Call &&call) {
    return throws<own_error>(call, [](const own_error &) { return true; });
}

/** A folder that goes when the test ends. */
struct folder {
    fs::path path = fs::temp_directory_path() / ("metal-candle-cpp-" + std::to_string(std::rand()));
    folder() { fs::create_directories(path); }
    ~folder() { fs::remove_all(path); }
    std::string operator/(const char *name) const { return (path / name).string(); }
};

std::optional<mc::model> loaded_coder;

const mc::model &coder() {
    if (!loaded_coder) loaded_coder.emplace("models/tiny-coder");
    return *loaded_coder;
}

mc::chat asking() {
    mc::chat chat;
    chat.add("user", question);
    return chat;
}

void errors_are_exceptions_with_status_message_and_causes() {
    CHECK(throws<mc::error>([] { mc::model("/nowhere"); },
                            [](const mc::error &error) {
                                return error.status() == MC_ERROR_NOT_FOUND &&
                                       std::string(error.name()) == "MC_ERROR_NOT_FOUND" &&
                                       std::string(error.what()).find("/nowhere") != std::string::npos &&
                                       !error.details().empty();
                            }));
    CHECK(throws(MC_ERROR_INVALID_ARGUMENT, [] { mc::model(std::string("models/tiny-coder\0/../x", 23)); }));
    mc::generate_options options;
    options.temperature = -1.0f;
    CHECK(throws<mc::error>([&] { coder().generate("a", options); },
                            [](const mc::error &error) {
                                return error.status() == MC_ERROR_INVALID_ARGUMENT &&
                                       std::string(error.what()).find("temperature") != std::string::npos;
                            }));
}

void loading_reports_progress_stops_and_passes_exceptions() {
    std::uint64_t calls = 0;
    mc::model_options options;
    options.progress = [&](const mc::progress &event) { calls += event.stage == MC_STAGE_READ && event.done <= event.total; };
    mc::model model("models/tiny-coder", options);
    CHECK(calls > 0);
    CHECK(model.vocab_size() == coder().vocab_size() && model.supports(MC_CAPABILITY_GENERATE) && model.layer_count() > 0);
    CHECK(model.architecture() == coder().architecture() && model.hidden_size() > 0 && model.parameter_count() > 0);
    CHECK(model.context_length() > 0 && model.dtype() == coder().dtype() && model.config_json().front() == '{');
    CHECK(mc::model::estimate_memory("models/tiny-coder", options) > 0);

    options.progress = [](const mc::progress &) { return false; };
    CHECK(throws<mc::cancelled>([&] { mc::model("models/tiny-coder", options); },
                                [](const mc::cancelled &error) { return error.status() == MC_CANCELLED; }));
    options.progress = [](const mc::progress &) { throw own_error(); };
    CHECK(throws_own([&] { mc::model("models/tiny-coder", options); }));
    mc::cancel cancel;
    cancel.trigger();
    options.progress = {};
    options.cancel = &cancel;
    CHECK(throws(MC_CANCELLED, [&] { mc::model("models/tiny-coder", options); }));
}

void answers_stream_and_are_values() {
    std::string shown;
    std::uint32_t count = 0;
    auto whole = coder().generate(coder().render(asking()), {}, [&](const mc::token &token) {
        shown += token.text;
        CHECK(token.index == count++ && token.logprob <= 1e-4f);
    });
    CHECK(whole.text == answer && shown == answer && whole.finish_reason == MC_FINISH_EOS);
    CHECK(whole.tokens.size() == count && whole.prompt_tokens > 0 && whole.decode_seconds > 0);
    CHECK(coder().generate(coder().render(asking())).text == answer);
}

void what_a_token_callback_throws_comes_out_and_the_session_goes_on() {
    mc::session session(coder());
    session.set_chat(asking());
    CHECK(throws_own([&] { session.generate({}, [](const mc::token &) { throw own_error(); }); }));
    session.set_chat(asking());
    CHECK(session.generate().text == answer);
}

void a_callback_stops_and_a_cancel_gives_what_there_is() {
    mc::session session(coder());
    session.set_chat(asking());
    auto stopped = session.generate({}, [](const mc::token &token) { return token.index < 2; });
    CHECK(stopped.finish_reason == MC_FINISH_CALLBACK && stopped.tokens.size() == 3);

    mc::cancel cancel;
    mc::generate_options options;
    options.cancel = &cancel;
    session.set_chat(asking());
    auto cancelled = session.generate(options, [&](const mc::token &token) {
        if (token.index == 1) std::thread([&] { cancel.trigger(); }).join();
    });
    CHECK(cancelled.finish_reason == MC_FINISH_CANCELLED && cancelled.tokens.size() == 2 && cancel.is_triggered());
    cancel.reset();
    CHECK(!cancel.is_triggered());
}

void tokens_are_a_range_that_may_be_left() {
    mc::session session(coder());
    session.set_chat(asking());
    std::string shown;
    {
        auto tokens = session.tokens();
        for (const auto &token : tokens) shown += token.text;
        auto whole = tokens.finish();
        CHECK(whole.text == answer && shown == answer);
        CHECK(throws(MC_ERROR_INVALID_ARGUMENT, [&] { tokens.finish(); }));
    }
    session.set_chat(asking());
    for (const auto &token : session.tokens())
        if (token.index == 2) break;
    session.set_chat(asking());
    shown.clear();
    for (const auto &token : session.tokens()) shown += token.text;
    CHECK(shown == answer);
    CHECK(throws(MC_ERROR_INVALID_ARGUMENT, [&] { mc::session(coder()).tokens(); }));
}

void several_sessions_answer_in_one_pass() {
    mc::session first(coder()), second(coder());
    first.set_chat(asking());
    second.set_chat(asking());
    auto one = first.tokens(), two = second.tokens();
    std::string texts[2];
    for (bool goes_on = true; goes_on;) {
        goes_on = false;
        auto next = mc::next_tokens({&first, &second});
        for (int at = 0; at < 2; at++)
            if (next[at].token) {
                texts[at] += next[at].token->text;
                goes_on = true;
            }
    }
    CHECK(texts[0] == answer && texts[1] == answer && one.finish().text == answer && two.finish().text == answer);
    CHECK(throws(MC_ERROR_INVALID_ARGUMENT, [&] { mc::next_tokens({&first, &first}); }));
}

void sessions_fork_save_load_truncate_and_score() {
    folder dir;
    mc::session session(coder());
    session.set_prompt(coder().render(asking()));
    const auto position = session.position();
    mc::session fork = session.fork();
    session.save(dir / "session");
    mc::session loaded = mc::session::load(coder(), dir / "session");
    CHECK(fork.generate().text == answer && loaded.generate().text == answer);
    CHECK(session.position() == position && session.logits(coder().vocab_size()).size() == coder().vocab_size());

    const auto top = session.top_logprobs(3);
    CHECK(top.size() == 3 && top[0].second >= top[1].second && session.held().size() == position);
    CHECK(throws(MC_ERROR_INVALID_ARGUMENT, [&] { session.top_logprobs(0); }));
    const auto ids = coder().tokenizer().encode(" and");
    const auto scores = session.score(ids);
    CHECK(scores.size() == ids.size() && scores[0] <= 0 && session.position() == position && session.score({}).empty());
    session.append(ids);
    CHECK(session.position() == position + ids.size());
    session.truncate(position);
    session.append(" and");
    CHECK(session.position() == position + ids.size());
    mc::session moved = std::move(session);
    CHECK(moved.position() == position + ids.size());
}

void chats_take_tools_templates_and_variables() {
    auto chat = mc::chat::from_json(R"([{"role": "user", "content": "a"}])");
    chat.set_template("{{ messages[0].content }}{{ x }}{{ tools | length }}{{ strftime_now('%Y') }}");
    chat.set_variable_json("x", "1").set_tools_json(R"([{"name": "clock"}])").set_time(0);
    CHECK(coder().render(chat) == "a111970");
    chat.set_template(std::nullopt).set_tools_json(std::nullopt).set_variable_json("x", std::nullopt);
    CHECK(coder().render(chat, false).find("a<|im_end|>") != std::string::npos);
    chat.set_control_tokens(MC_CONTROL_TEXT);
    CHECK(!coder().encode(chat, false).empty());
    CHECK(throws(MC_ERROR_INVALID_ARGUMENT, [&] { coder().render(chat); }));
    chat.set_control_tokens(MC_CONTROL_TOKENS).set_continue_final_message(true);
    CHECK(coder().render(chat, false).find("a<|im_end|>") == std::string::npos);
    CHECK(throws(MC_ERROR_TEMPLATE, [&] { chat.set_template("{% for %}"); }));
    CHECK(throws<mc::error>([] { mc::chat::from_json("[1]"); }, [](const mc::error &) { return true; }));
}

void tokenizers_outlive_their_model() {
    std::optional<mc::model> model("models/tiny-coder");
    auto tokenizer = model->tokenizer();
    model.reset();
    const auto ids = tokenizer.encode("let x = 1;");
    CHECK(tokenizer.decode(ids) == "let x = 1;" && tokenizer.vocab_size() > 0);
    CHECK(tokenizer.token_id("<|im_end|>") > 0 && throws(MC_ERROR_NOT_FOUND, [&] { tokenizer.token_id("no such token"); }));
    CHECK(mc::tokenizer("models/tiny-coder").encode("let x = 1;") == ids);

    mc::text_stream stream(tokenizer);
    std::string bytes, shown;
    for (std::uint32_t id : ids) {
        bytes += tokenizer.token_bytes(id);
        shown += stream.push(id);
        CHECK(!tokenizer.is_special(id));
    }
    CHECK(bytes == "let x = 1;" && shown + stream.finish() == bytes && tokenizer.is_special(coder().eos_tokens().at(0)));
}

void a_schema_binds_the_answer() {
    mc::generate_options options;
    options.json_schema = R"({"enum": ["yes", "no"]})";
    const auto text = coder().generate(coder().render(asking()), options).text;
    CHECK(text == "\"yes\"" || text == "\"no\"");
    options.json_schema = R"({"enum": [{"name": "f", "parameters": {"a": 1}}]})";
    options.answer_format = "llama3";
    options.reasoning_budget = 4;
    std::string arguments;
    std::vector<mc_part_kind> kinds;
    const auto call = coder().generate(coder().render(asking()), options, [&](const mc::token &token) {
        for (const mc::part &part : token.parts) {
            kinds.push_back(part.kind);
            CHECK(part.index == 0 && (part.kind != MC_PART_TOOL_CALL || part.text == "f"));
            if (part.kind == MC_PART_ARGUMENTS) arguments += part.text;
        }
        return true;
    });
    // JSON may have spaces and lines between its parts.
    const auto is_space = [](char c) { return c == ' ' || c == '\n'; };
    arguments.erase(std::remove_if(arguments.begin(), arguments.end(), is_space), arguments.end());
    CHECK(kinds.front() == MC_PART_TOOL_CALL && kinds.back() == MC_PART_TOOL_CALL_END && arguments == R"({"a":1})");
    options.json_schema = std::nullopt;
    options.tool_choice = "required";
    mc::session asked(coder());
    auto with_tools = asking();
    with_tools.set_tools_json(R"([{"name": "now"}])");
    asked.set_chat(with_tools);
    CHECK(asked.generate(options).text == R"({"name": "now", "parameters": {}})");
    CHECK(call.content.empty() && call.reasoning.empty());
    CHECK(call.tool_calls_json.find(R"("name":"f")") != std::string::npos);
}

void vectors_rank_texts() {
    mc::model embedder("models/tiny-embed");
    const std::vector<std::string_view> texts{"sleep for one second", "add an element to a vector", "open a file for reading",
                                              ""};
    std::uint64_t done = 0;
    mc::embed_options options;
    options.progress = [&](const mc::progress &event) { done = event.done; };
    const auto documents = embedder.embed(texts, options);
    const auto dim = embedder.embed_dim();
    CHECK(documents.size() == texts.size() * dim && done == texts.size());
    const auto query = embedder.embed("push onto a Vec");
    const auto hits = mc::nearest(embedder.similarity(), query, documents, 2);
    CHECK(hits.size() == 2 && hits[0].index == 1 && hits[0].score > hits[1].score);
    CHECK(mc::nearest(embedder.similarity(), query, {}, 2).empty() &&
          mc::nearest(embedder.similarity(), query, documents, 9).size() == 4);
    CHECK(throws(MC_ERROR_INVALID_ARGUMENT, [&] { mc::nearest(embedder.similarity(), {}, documents, 1); }));
    options.progress = [](const mc::progress &) { throw own_error(); };
    CHECK(throws_own([&] { embedder.embed(texts, options); }));
    CHECK(embedder.embed(std::vector<std::string_view>{}).empty());
    // What is wrong is told as it is, although there is no size to make room for.
    mc::embed_options unknown;
    unknown.prompt_name = "no such prompt";
    for (bool many : {false, true}) {
        auto embed = [&] { many ? embedder.embed(texts, unknown) : embedder.embed(texts[0], unknown); };
        CHECK(throws<mc::error>(embed, [](const mc::error &e) {
            return e.status() == MC_ERROR_INVALID_ARGUMENT && std::string_view(e.what()).find("prompt_name") != std::string_view::npos;
        }));
    }
}

void documents_have_scores() {
    mc::model reranker("tests/golden/rerankers/bert");
    const std::vector<std::string_view> documents{"Sorts the numbers in place.", "", "hello"};
    const std::string_view query = "How do I sort a list of numbers?";
    const auto scores = reranker.rerank(query, documents);
    CHECK(scores.size() == 3 && std::fabs(scores[0] - 0.630089f) < 5e-5f);
    mc::rerank_options options;
    options.activation = MC_SCORE_ACTIVATION_IDENTITY;
    options.batch_size = 1;
    options.prompt = "";
    CHECK(std::fabs(1 / (1 + std::exp(-reranker.rerank(query, documents, options)[2])) - scores[2]) < 1e-6f);
    options.prompt = std::nullopt;
    options.prompt_name = "nobody";
    options.max_length = 20;
    CHECK(throws(MC_ERROR_INVALID_ARGUMENT, [&] { reranker.rerank(query, documents, options); }));
    CHECK(throws(MC_ERROR_UNSUPPORTED, [&] { coder().rerank(query, documents); }));
    CHECK(reranker.rerank(query, {}).empty());
}

void adapters_are_trained_used_saved_and_merged() {
    folder dir;
    mc::train_options options;
    options.learning_rate = 5e-3;
    options.schedule = mc::train_options::learning_rate_schedule{MC_SCHEDULE_CONSTANT, 0, 4};
    options.checkpoint = {dir / "checkpoint", 2};
    mc::lora_config config;
    config.rank = 4;
    config.targets = {"q_proj", "v_proj"};
    CHECK(mc::trainer::estimate_memory(coder(), config, options) > 0);
    mc::trainer trainer(coder(), config, options);
    mc::dataset data("examples/data/facts.jsonl");
    data.add_text("a text").add_completion("a", "b").add_chat(
        mc::chat::from_json(R"([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])"));
    CHECK(data.size() > 3 && mc::dataset().size() == 0);
    CHECK(throws_own([&] { trainer.train(data, nullptr, [](const mc_train_event &) { throw own_error(); }); }));
    CHECK(trainer.step_count() == 1);
    std::uint64_t last = 0;
    trainer.train(data, nullptr, [&](const mc_train_event &event) { last = event.step; });
    CHECK(last == 4 && trainer.step_count() == 4 && trainer.last_update().step == 4 && trainer.last_update().grad_norm > 0);

    const mc::lora adapter = trainer.adapter();
    CHECK(adapter.rank() == 4 && adapter.parameter_count() > 0 && adapter.alpha() > 0 && adapter.config_json().front() == '{');
    adapter.save(dir / "adapter");
    const mc::lora loaded(coder(), dir / "adapter");
    mc::session session(coder()), other(coder()), merged_session(coder().merged(loaded));
    session.set_lora(&loaded);
    other.set_loras({{&adapter, 0.5f}, {&adapter, 0.5f}});
    for (mc::session *each : {&session, &other, &merged_session}) each->set_chat(asking());
    const auto size = coder().vocab_size();
    const auto a = session.logits(size), b = other.logits(size), c = merged_session.logits(size);
    for (std::size_t at = 0; at < size; at++) {
        CHECK(std::abs(a[at] - b[at]) < 1e-3f && std::abs(a[at] - c[at]) < 1e-2f);
        if (failing) break;
    }
    mc::generate_options generating;
    generating.lora = &loaded;
    generating.max_tokens = 2;
    CHECK(coder().generate("a", generating).tokens.size() <= 2);
    generating.loras = {{&loaded, 0.5f}, {&adapter, 0.5f}};
    CHECK(coder().generate("a", generating).tokens.size() <= 2);
    CHECK(session.memory() > 0);
    mc::chat talk;
    talk.add("user", "a").add("assistant", "b").remove_last();
    CHECK(talk.size() == 1 && mc::chat::from_json(talk.json()).json() == talk.json());
    generating.json = R"({"max_tokens": 1})";
    CHECK(coder().generate("a", generating).tokens.size() == 1);
    generating.json = "{";
    CHECK(throws(MC_ERROR_INVALID_ARGUMENT, [&] { coder().generate("a", generating); }));

    mc::trainer resumed = mc::trainer::resume(coder(), dir / "checkpoint", options);
    CHECK(resumed.step_count() == 4);
    resumed.save(dir / "again");
    const auto ids = coder().tokenizer().encode("a b c d");
    const float before = resumed.evaluate({{ids}, {}});
    const mc::token_batch step{{ids}, {std::vector<std::uint8_t>(ids.size(), 1)}};
    CHECK(std::isfinite(before) && std::isfinite(resumed.step(step)));
    // The checkpoint's options, not the defaults.
    mc::trainer kept = mc::trainer::resume(coder(), dir / "checkpoint");
    kept.step(step);
    CHECK(kept.last_update().learning_rate == 5e-3 && resumed.last_update().learning_rate == 5e-3);
    CHECK(throws(MC_ERROR_INVALID_ARGUMENT, [&] { resumed.step({{ids}, {{1}}}); }));
}

void models_are_saved() {
    folder dir;
    std::uint64_t done = 0;
    coder().save(dir / "model", std::nullopt, [&](const mc::progress &event) { done = event.done; });
    CHECK(done > 0 && mc::model(dir / "model").generate(coder().render(asking())).text == answer);
    CHECK(throws_own([&] { coder().save(dir / "other", std::nullopt, [](const mc::progress &) { throw own_error(); }); }));
    CHECK(throws(MC_ERROR_UNSUPPORTED, [&] { coder().save_gguf(dir / "model.gguf"); }));
}

void the_log_is_a_function_that_is_freed() {
    auto kept = std::make_shared<int>(0);
    mc::set_log([kept](mc_log_level, std::string_view, std::string_view message) { *kept += !message.empty(); });
    mc::model("models/tiny-embed");
    CHECK(*kept > 0 && kept.use_count() == 2);
    mc::set_log({});
    CHECK(kept.use_count() == 1);
}

void the_library_says_what_it_is() {
    CHECK(mc::version() == MC_VERSION_STRING && mc::version_number() == MC_VERSION_NUMBER && mc::is_compatible());
    CHECK(!mc::has_feature("no such feature") && mc::architectures_json().find("\"qwen2\"") != std::string::npos);
    mc::trim_memory();
    mc::set_threads(3);
    CHECK(mc::threads() == 3);
    CHECK(throws(MC_ERROR_INVALID_ARGUMENT, [] { mc::set_threads(1025); }));
    mc::set_threads(0);
    mc::device cpu(MC_DEVICE_CPU);
    CHECK(cpu.kind() == MC_DEVICE_CPU && !cpu.name().empty() && mc::device::count(MC_DEVICE_CPU) == 1 &&
          cpu.memory().total > 0);
    cpu.synchronize();
    cpu.suspend(0);
    cpu.resume();
    mc::model_options options;
    options.device = &cpu;
    options.dtype = MC_DTYPE_F32;
    CHECK(mc::model("models/tiny-embed", options).dtype() == MC_DTYPE_F32);
}

void everything_is_freed() {
    loaded_coder.reset();
    CHECK(mc::live_objects() == 0);
}

void run(const char *name, void (*test)()) {
    failing = false;
    try {
        test();
    } catch (const std::exception &error) {
        failing = true;
        std::cerr << "thrown: " << error.what() << "\n";
    }
    if (failing) std::cerr << "failed: " << name << "\n";
    (failing ? failed : passed)++;
}

} // namespace

int main() {
#define RUN(test) run(#test, test)
    RUN(errors_are_exceptions_with_status_message_and_causes);
    RUN(loading_reports_progress_stops_and_passes_exceptions);
    RUN(answers_stream_and_are_values);
    RUN(what_a_token_callback_throws_comes_out_and_the_session_goes_on);
    RUN(a_callback_stops_and_a_cancel_gives_what_there_is);
    RUN(tokens_are_a_range_that_may_be_left);
    RUN(several_sessions_answer_in_one_pass);
    RUN(sessions_fork_save_load_truncate_and_score);
    RUN(chats_take_tools_templates_and_variables);
    RUN(tokenizers_outlive_their_model);
    RUN(a_schema_binds_the_answer);
    RUN(vectors_rank_texts);
    RUN(documents_have_scores);
    RUN(adapters_are_trained_used_saved_and_merged);
    RUN(models_are_saved);
    RUN(the_log_is_a_function_that_is_freed);
    RUN(the_library_says_what_it_is);
    RUN(everything_is_freed);
    std::cout << passed << " passed, " << failed << " failed\n";
    return failed != 0;
}
