/** @file
 * metal-candle for C++17: header only, over metal_candle.h, which says what each call does, its ranges, units and threads.
 *
 *     metal_candle::model model("models/tiny-coder");
 *     metal_candle::session session(model);
 *     metal_candle::chat chat;
 *     session.set_chat(chat.add("user", "What does `Vec::push` do?"));
 *     for (const auto &token : session.tokens()) std::cout << token.text << std::flush;
 *
 * - Handles are move-only and free themselves, in any order. A moved-from handle may only be assigned to or destroyed.
 * - Errors are exceptions: metal_candle::error with the status of the C call, metal_candle::cancelled for MC_CANCELLED where there
 *   is no result. A generation that was cancelled is a result: its finish reason is MC_FINISH_CANCELLED.
 * - Callbacks are anything callable that returns nothing, or a bool: false stops. What a callback throws stops the call, and is
 *   thrown again by it: no exception passes through the library.
 * - Options are structs; a member that is not set keeps the library's default.
 * - Texts are UTF-8. A std::string that becomes a name or a path must not hold a NUL.
 */
#ifndef METAL_CANDLE_HPP
#define METAL_CANDLE_HPP

#include <metal_candle.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <iterator>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace metal_candle {

/** What a call of the library failed with. */
class error : public std::runtime_error {
public:
    error(mc_status status, const std::string &message, const std::string &details = {})
        : std::runtime_error(message), status_(status), details_(details) {}

    /** The C status, MC_ERROR_INVALID_ARGUMENT and above, or MC_CANCELLED. */
    mc_status status() const noexcept { return status_; }
    /** Its name, such as "MC_ERROR_NOT_FOUND". */
    const char *name() const noexcept { return mc_status_name(status_); }
    /** The message with all its causes, a line each. */
    const std::string &details() const noexcept { return details_; }

private:
    mc_status status_;
    std::string details_;
};

/** The call was stopped: by a cancel flag, or by a callback that returned false. */
class cancelled : public error {
public:
    using error::error;
};

/** How loading, saving, reading of a prompt or embedding goes on. */
struct progress {
    mc_stage stage;
    /** In what the stage counts: bytes, tokens or texts; `total` is 0 where it is not known. */
    std::uint64_t done, total;
};

/** A part of an answer, or a piece of one; `text` is valid until the next token. */
struct part {
    /** Text, a piece of a thought or of a call's arguments, the name of a call that begins, or the JSON of one that is whole. */
    mc_part_kind kind;
    std::string_view text;
    /** Which call of the answer it belongs to; 0 for text and reasoning. */
    std::uint32_t index;
};

/** A token of an answer. `text` is valid until the next one; whole characters, and may be empty. */
struct token {
    std::string_view text;
    std::uint32_t id;
    /** 0 for the first of the answer. */
    std::uint32_t index;
    /** Natural logarithm of the probability that the model itself gave it. */
    float logprob;
    /** What became certain with it: text, thoughts and calls of tools; of an answer that is not told apart, its text. */
    std::vector<part> parts = {};
};

/** A finished answer. */
struct generation {
    std::string text;
    std::vector<std::uint32_t> tokens;
    std::size_t prompt_tokens = 0;
    mc_finish_reason finish_reason = MC_FINISH_NONE;
    double prefill_seconds = 0, decode_seconds = 0;
    /** The text without thoughts and calls of tools, where the answer was told apart; the thoughts; the calls, a JSON array. */
    std::string content, reasoning, tool_calls_json;
};

/** What follows is how the classes below are made; programs do not need it. */
namespace detail {

/** Receives the error of one C call. */
class outcome {
public:
    outcome() = default;
    outcome(const outcome &) = delete;
    outcome &operator=(const outcome &) = delete;
    ~outcome() { mc_error_free(error_); }

    /** The last argument of a C call. */
    mc_error **out() noexcept { return &error_; }

    /** Throws errors; MC_OK, MC_DONE and MC_CANCELLED come back. */
    mc_status check(mc_status status) const {
        if (status == MC_OK || status == MC_DONE || status == MC_CANCELLED) return status;
        throw make<error>(status);
    }

    /** Throws cancels too. */
    void expect(mc_status status) const {
        if (check(status) == MC_CANCELLED) throw make<cancelled>(status);
    }

private:
    template <class E> E make(mc_status status) const {
        if (!error_) return E(status, mc_status_name(status));
        return E(status, mc_error_message(error_), mc_error_details(error_));
    }

    mc_error *error_ = nullptr;
};

/** Calls `call(err)` and throws what it failed with. */
template <class Call> void run(Call &&call) {
    outcome o;
    o.expect(call(o.out()));
}

template <auto Free> struct deleter {
    template <class T> void operator()(T *handle) const noexcept { Free(handle); }
};

template <class T, auto Free> using handle = std::unique_ptr<T, deleter<Free>>;

/** Calls `call(&handle, err)` and owns the result. */
template <class T, auto Free, class Call> handle<T, Free> make(Call &&call) {
    T *raw = nullptr;
    outcome o;
    mc_status status = call(&raw, o.out());
    handle<T, Free> owned(raw);
    o.expect(status);
    return owned;
}

/** A name or path for C. */
inline const char *c_text(const std::string &text) {
    if (text.find('\0') != std::string::npos)
        throw error(MC_ERROR_INVALID_ARGUMENT,
                    "expected a text without NUL, found one in \"" + std::string(text.c_str()) + "\"");
    return text.c_str();
}

inline const char *c_text(const std::optional<std::string> &text) { return text ? c_text(*text) : nullptr; }

inline std::string take_string(mc_string *raw) {
    handle<mc_string, mc_string_free> owned(raw);
    return {mc_string_data(raw), mc_string_len(raw)};
}

template <class Call> std::string string_of(Call &&call) {
    mc_string *raw = nullptr;
    run([&](mc_error **err) { return call(&raw, err); });
    return take_string(raw);
}

template <class Call> std::vector<std::uint32_t> tokens_of(Call &&call) {
    auto tokens = make<mc_tokens, mc_tokens_free>(call);
    const std::uint32_t *data = mc_tokens_data(tokens.get());
    return {data, data + mc_tokens_len(tokens.get())};
}

/** Whatever a callable returns as whether to go on. */
template <class F, class... A> bool go_on(F &function, A &&...arguments) {
    if constexpr (std::is_void_v<std::invoke_result_t<F &, A...>>) {
        function(std::forward<A>(arguments)...);
        return true;
    } else {
        return static_cast<bool>(function(std::forward<A>(arguments)...));
    }
}

} // namespace detail

/** Something that is called with each progress, and may return false to stop; empty by default. */
class progress_callback {
public:
    progress_callback() = default;
    template <class F, class = std::enable_if_t<!std::is_same_v<std::decay_t<F>, progress_callback>>>
    progress_callback(F &&function)
        : function_([function = std::forward<F>(function)](const progress &event) mutable {
              return detail::go_on(function, event);
          }) {}

    explicit operator bool() const noexcept { return static_cast<bool>(function_); }
    bool operator()(const progress &event) const { return function_(event); }

private:
    std::function<bool(const progress &)> function_;
};

namespace detail {

/** A C callback from a callable; `Convert` turns the C event into what the callable takes. */
template <class Event, auto Convert, class F> class callback {
public:
    explicit callback(F &function) : function_(&function) {}
    callback(const callback &) = delete;
    callback &operator=(const callback &) = delete;

    static std::int32_t call(void *user_data, const Event *event) noexcept {
        auto &self = *static_cast<callback *>(user_data);
        try {
            return go_on(*self.function_, Convert(*event)) ? MC_CONTINUE : MC_STOP;
        } catch (...) {
            self.thrown_ = std::current_exception();
            return MC_STOP;
        }
    }

    void rethrow() const {
        if (thrown_) std::rethrow_exception(thrown_);
    }

private:
    F *function_;
    std::exception_ptr thrown_;
};

inline progress progress_of(const mc_progress_event &event) { return {event.stage, event.done, event.total}; }
inline token token_of(const mc_token_event &event) {
    token result{{event.text, event.text_len}, event.token, event.index, event.logprob};
    // A later library has larger ones.
    const char *at = reinterpret_cast<const char *>(event.parts);
    for (std::size_t i = 0; i < event.parts_len; i++) {
        const mc_part &part = *reinterpret_cast<const mc_part *>(at);
        result.parts.push_back({part.kind, {part.text, part.text_len}, part.index});
        at += part.struct_size;
    }
    return result;
}

/** The progress of one call; without a function, none is reported. */
class progress_bridge {
public:
    explicit progress_bridge(const progress_callback &function) : function_(function), bridge_(function_) {}

    mc_progress_fn function() const noexcept { return function_ ? &bridge::call : nullptr; }
    void *user_data() noexcept { return &bridge_; }
    void rethrow() const { bridge_.rethrow(); }

private:
    using bridge = callback<mc_progress_event, progress_of, progress_callback>;
    progress_callback function_;
    bridge bridge_;
};

inline generation generation_of(const mc_generation *raw) {
    const std::uint32_t *tokens = mc_generation_tokens(raw);
    return {{mc_generation_text(raw), mc_generation_text_len(raw)},
            {tokens, tokens + mc_generation_tokens_len(raw)},
            mc_generation_prompt_tokens(raw),
            mc_generation_finish_reason(raw),
            mc_generation_prefill_seconds(raw),
            mc_generation_decode_seconds(raw),
            {mc_generation_content(raw), mc_generation_content_len(raw)},
            {mc_generation_reasoning(raw), mc_generation_reasoning_len(raw)},
            {mc_generation_tool_calls_json(raw), mc_generation_tool_calls_json_len(raw)}};
}

using generation_handle = handle<mc_generation, mc_generation_free>;

/** A generation that may have been cancelled: its text is there all the same. */
template <class Call> generation generate(Call &&call) {
    mc_generation *raw = nullptr;
    outcome o;
    mc_status status = call(&raw, o.out());
    generation_handle owned(raw);
    o.check(status);
    if (!owned) o.expect(status);
    return generation_of(raw);
}

} // namespace detail

/** A flag that stops calls. trigger() may be called on any thread and in a signal handler. */
class cancel {
public:
    cancel() : handle_(detail::handle<mc_cancel, mc_cancel_free>(mc_cancel_new())) {}
    void trigger() const noexcept { mc_cancel_trigger(get()); }
    void reset() const noexcept { mc_cancel_reset(get()); }
    bool is_triggered() const noexcept { return mc_cancel_is_triggered(get()); }
    const mc_cancel *get() const noexcept { return handle_.get(); }

private:
    detail::handle<mc_cancel, mc_cancel_free> handle_;
};

namespace detail {
inline const mc_cancel *raw(const cancel *flag) noexcept { return flag ? flag->get() : nullptr; }
} // namespace detail

/** Where a model computes. */
class device {
public:
    explicit device(mc_device_kind kind = MC_DEVICE_AUTO, std::size_t index = 0)
        : handle_(detail::make<mc_device, mc_device_free>(
              [&](auto out, auto err) { return mc_device_new(kind, index, out, err); })) {}

    static std::size_t count(mc_device_kind kind) noexcept { return mc_device_count(kind); }
    mc_device_kind kind() const noexcept { return mc_device_kind_of(get()); }
    std::string name() const { return mc_device_name(get()); }

    struct memory_bytes {
        std::uint64_t used = 0, total = 0;
    };
    memory_bytes memory() const {
        memory_bytes bytes;
        detail::run([&](auto err) { return mc_device_memory(get(), &bytes.used, &bytes.total, err); });
        return bytes;
    }
    void synchronize() const {
        detail::run([&](auto err) { return mc_device_synchronize(get(), err); });
    }
    /** No GPU work from now on until resume(), as iOS asks of apps in the background. */
    void suspend(std::uint32_t timeout_ms) const {
        detail::run([&](auto err) { return mc_device_suspend(get(), timeout_ms, err); });
    }
    void resume() const noexcept { mc_device_resume(get()); }
    const mc_device *get() const noexcept { return handle_.get(); }

private:
    detail::handle<mc_device, mc_device_free> handle_;
};

/** How a model is loaded: mc_model_options. */
struct model_options {
    const metal_candle::device *device = nullptr;
    std::optional<mc_dtype> dtype;
    std::optional<std::string> tokenizer_path;
    /** "q8_0", "q4_k_m", …: mc_model_options_set_quantization(). */
    std::optional<std::string> quantization;
    std::optional<bool> exact;
    std::optional<std::string> kv_cache;
    std::optional<std::size_t> max_context;
    /** Which file of a directory or repository, for GGUF. */
    std::optional<std::string> file;
    std::optional<std::string> hub_cache_dir, hub_revision, hub_token;
    std::optional<bool> offline;
    /** Options as JSON, by the names that mc_model_options_set_json() tells; they count more than those here. */
    std::optional<std::string> json;
    const metal_candle::cancel *cancel = nullptr;
    progress_callback progress;
};

namespace detail {

using model_options_handle = handle<mc_model_options, mc_model_options_free>;

inline model_options_handle to_c(const model_options &from, progress_bridge &bridge) {
    auto owned = handle<mc_model_options, mc_model_options_free>(mc_model_options_new());
    mc_model_options *options = owned.get();
    if (from.device) mc_model_options_set_device(options, from.device->get());
    if (from.dtype) mc_model_options_set_dtype(options, *from.dtype);
    if (from.tokenizer_path) mc_model_options_set_tokenizer_path(options, c_text(*from.tokenizer_path));
    if (from.quantization) mc_model_options_set_quantization(options, c_text(*from.quantization));
    if (from.exact) mc_model_options_set_exact(options, *from.exact);
    if (from.kv_cache) mc_model_options_set_kv_cache(options, c_text(*from.kv_cache));
    if (from.max_context) mc_model_options_set_max_context(options, *from.max_context);
    if (from.file) mc_model_options_set_file(options, c_text(*from.file));
    if (from.hub_cache_dir) mc_model_options_set_hub_cache_dir(options, c_text(*from.hub_cache_dir));
    if (from.hub_revision) mc_model_options_set_hub_revision(options, c_text(*from.hub_revision));
    if (from.hub_token) mc_model_options_set_hub_token(options, c_text(*from.hub_token));
    if (from.offline) mc_model_options_set_offline(options, *from.offline);
    mc_model_options_set_cancel(options, raw(from.cancel));
    if (bridge.function()) mc_model_options_set_progress(options, bridge.function(), bridge.user_data());
    if (from.json) mc_model_options_set_json(options, from.json->data(), from.json->size());
    return owned;
}

} // namespace detail

/** Texts to token ids and back. */
class tokenizer {
public:
    /** A tokenizer.json, a directory that holds one, or a GGUF file. */
    explicit tokenizer(const std::string &path)
        : handle_(detail::make<mc_tokenizer, mc_tokenizer_free>(
              [&](auto out, auto err) { return mc_tokenizer_load(detail::c_text(path), out, err); })) {}

    std::vector<std::uint32_t> encode(std::string_view text, bool add_special = false) const {
        return detail::tokens_of(
            [&](auto out, auto err) { return mc_tokenizer_encode(get(), text.data(), text.size(), add_special, out, err); });
    }
    std::string decode(const std::vector<std::uint32_t> &tokens, bool skip_special = false) const {
        return detail::string_of([&](auto out, auto err) {
            return mc_tokenizer_decode(get(), tokens.data(), tokens.size(), skip_special, out, err);
        });
    }
    /** The id of one token by its text. Throws MC_ERROR_NOT_FOUND. */
    std::uint32_t token_id(const std::string &token) const {
        std::uint32_t id = 0;
        detail::run([&](auto err) { return mc_tokenizer_token_id(get(), detail::c_text(token), &id, err); });
        return id;
    }
    bool is_special(std::uint32_t token) const noexcept { return mc_tokenizer_is_special(get(), token); }
    /** The bytes that a token adds to a text: UTF-8, or a part of a character; none of a special token. */
    std::string token_bytes(std::uint32_t token) const {
        std::string bytes(64, '\0');
        for (;;) {
            std::size_t len = 0;
            auto *out = reinterpret_cast<std::uint8_t *>(&bytes[0]);
            detail::run([&](auto err) { return mc_tokenizer_token_bytes(get(), token, out, bytes.size(), &len, err); });
            const bool is_whole = len <= bytes.size();
            bytes.resize(len);
            if (is_whole) return bytes;
        }
    }
    std::size_t vocab_size() const noexcept { return mc_tokenizer_vocab_size(get()); }
    const mc_tokenizer *get() const noexcept { return handle_.get(); }

private:
    friend class model;
    explicit tokenizer(detail::handle<mc_tokenizer, mc_tokenizer_free> handle) : handle_(std::move(handle)) {}
    detail::handle<mc_tokenizer, mc_tokenizer_free> handle_;
};

/** Token ids to text as they come: whole characters, without special tokens. */
class text_stream {
public:
    explicit text_stream(const tokenizer &of)
        : handle_(detail::make<mc_text_stream, mc_text_stream_free>(
              [&](auto out, auto err) { return mc_text_stream_new(of.get(), out, err); })) {}

    /** The text that became certain with a token; may be empty. */
    std::string push(std::uint32_t token) {
        return detail::string_of([&](auto out, auto err) { return mc_text_stream_push(handle_.get(), token, out, err); });
    }
    /** What was held back; the stream is then at its beginning. */
    std::string finish() {
        return detail::string_of([&](auto out, auto err) { return mc_text_stream_finish(handle_.get(), out, err); });
    }

private:
    detail::handle<mc_text_stream, mc_text_stream_free> handle_;
};

/** A conversation: messages, tools, and what else a chat template reads. */
class chat {
public:
    chat() : handle_(detail::handle<mc_chat, mc_chat_free>(mc_chat_new())) {}
    /** From an array of messages, or an object with `messages` and `tools`. */
    static chat from_json(std::string_view json) {
        return chat(detail::make<mc_chat, mc_chat_free>(
            [&](auto out, auto err) { return mc_chat_from_json(json.data(), json.size(), out, err); }));
    }

    chat &add(const std::string &role, std::string_view content) {
        detail::run(
            [&](auto err) { return mc_chat_add(handle_.get(), detail::c_text(role), content.data(), content.size(), err); });
        return *this;
    }
    std::size_t size() const noexcept { return mc_chat_len(get()); }
    /** Removes the last message. */
    chat &remove_last() {
        detail::run([&](auto err) { return mc_chat_remove_last(handle_.get(), err); });
        return *this;
    }
    /** What from_json() makes an equal conversation of: messages and tools. */
    std::string json() const {
        return detail::string_of([&](auto out, auto err) { return mc_chat_json(get(), out, err); });
    }
    /** An array of tools; nullopt removes them. */
    chat &set_tools_json(std::optional<std::string_view> json) {
        detail::run([&](auto err) {
            return mc_chat_set_tools_json(handle_.get(), json ? json->data() : nullptr, json ? json->size() : 0, err);
        });
        return *this;
    }
    /** A Jinja template in place of the model's; nullopt = the model's. */
    chat &set_template(std::optional<std::string_view> jinja) {
        detail::run([&](auto err) {
            return mc_chat_set_template(handle_.get(), jinja ? jinja->data() : nullptr, jinja ? jinja->size() : 0, err);
        });
        return *this;
    }
    /** A variable of the template, such as "enable_thinking"; nullopt removes it. */
    chat &set_variable_json(const std::string &name, std::optional<std::string_view> json) {
        detail::run([&](auto err) {
            const char *data = json ? json->data() : nullptr;
            return mc_chat_set_variable_json(handle_.get(), detail::c_text(name), data, json ? json->size() : 0, err);
        });
        return *this;
    }
    /** What the template takes for now, in seconds since 1970. */
    chat &set_time(std::int64_t unix_seconds) noexcept {
        mc_chat_set_time(handle_.get(), unix_seconds);
        return *this;
    }
    /** Leaves the last message open: the model goes on with it. */
    chat &set_continue_final_message(bool continues) noexcept {
        mc_chat_set_continue_final_message(handle_.get(), continues);
        return *this;
    }
    /** What control tokens are that messages hold: tokens, or text of whoever wrote them. */
    chat &set_control_tokens(mc_control_tokens control_tokens) {
        detail::run([&](auto err) { return mc_chat_set_control_tokens(handle_.get(), control_tokens, err); });
        return *this;
    }
    const mc_chat *get() const noexcept { return handle_.get(); }

private:
    explicit chat(detail::handle<mc_chat, mc_chat_free> handle) : handle_(std::move(handle)) {}
    detail::handle<mc_chat, mc_chat_free> handle_;
};

class lora;

/** How embeddings are made: mc_embed_options. */
struct embed_options {
    std::optional<mc_pooling> pooling;
    std::optional<bool> normalize;
    std::optional<std::size_t> dimensions, max_length, batch_size;
    /** One of the model's own prompts, or a text in front of each. */
    std::optional<std::string> prompt_name, prefix;
    const metal_candle::lora *lora = nullptr;
    float lora_scale = 1;
    /** Several at once, in place of `lora`, each with its factor. */
    std::vector<std::pair<const metal_candle::lora *, float>> loras;
    /** Options as JSON, by the names that mc_embed_options_set_json() tells; they count more than those here. */
    std::optional<std::string> json;
    const metal_candle::cancel *cancel = nullptr;
    progress_callback progress;
};

/** How documents are reranked: mc_rerank_options. What is not set is as the model's directory says. */
struct rerank_options {
    std::optional<mc_score_activation> activation;
    std::optional<std::size_t> max_length, batch_size;
    /** One of the model's own prompts, or a text in front of the query or as the system message. */
    std::optional<std::string> prompt_name, prompt;
    /** Options as JSON, by the names that mc_rerank_options_set_json() tells; they count more than those here. */
    std::optional<std::string> json;
    const metal_candle::cancel *cancel = nullptr;
};

/** How an answer is made: mc_generate_options. Sampling that is not set is as the model's generation_config.json says. */
struct generate_options {
    std::optional<std::size_t> max_tokens;
    std::optional<double> temperature;
    std::optional<std::size_t> top_k;
    std::optional<double> top_p, min_p;
    std::optional<double> repetition_penalty;
    /** Of the last so many tokens; 0 = all. */
    std::size_t repetition_last_n = 0;
    std::optional<double> frequency_penalty, presence_penalty;
    std::vector<std::pair<std::uint32_t, float>> logit_bias;
    std::optional<std::uint64_t> seed;
    std::vector<std::string> stop;
    std::optional<std::string> json_schema;
    /** How the answer is told apart, such as "hermes" or "none"; nullopt = as the session's conversation says. */
    std::optional<std::string> answer_format;
    /** "auto", "none", "required", or the name of a tool of the session's conversation. */
    std::optional<std::string> tool_choice;
    /** Tokens that a thought may have. */
    std::optional<std::size_t> reasoning_budget;
    std::optional<bool> ignore_eos, add_special;
    std::optional<std::size_t> prefill_chunk;
    /** An adapter for this answer in place of the session's own. */
    const metal_candle::lora *lora = nullptr;
    float lora_scale = 1;
    /** Several at once, in place of `lora`, each with its factor. */
    std::vector<std::pair<const metal_candle::lora *, float>> loras;
    /** Options as JSON, by the names that mc_generate_options_set_json() tells; they count more than those here. */
    std::optional<std::string> json;
    const metal_candle::cancel *cancel = nullptr;
    progress_callback prefill_progress;
};

/** A document and how near it is. */
struct hit {
    std::size_t index;
    float score;
};

/** A loaded model. Immutable: any number of threads may use it at once. */
class model {
public:
    /** A directory of safetensors, a GGUF file, or a directory that holds one. */
    explicit model(const std::string &path, const model_options &options = {})
        : model(options, [&](auto c, auto out, auto err) { return mc_model_load(detail::c_text(path), c, out, err); }) {}
    /** A repository of the Hub by its name, "owner/name". */
    static model from_hub(const std::string &repo_id, const model_options &options = {}) {
        return model(options,
                     [&](auto c, auto out, auto err) { return mc_model_load_hub(detail::c_text(repo_id), c, out, err); });
    }
    /** What loading it would take, in bytes. */
    static std::uint64_t estimate_memory(const std::string &path, const model_options &options = {}) {
        detail::progress_bridge none{progress_callback()};
        auto c = detail::to_c(options, none);
        std::uint64_t bytes = 0;
        detail::run([&](auto err) { return mc_model_estimate_memory(detail::c_text(path), c.get(), &bytes, err); });
        return bytes;
    }
    /** The model with an adapter's changes in its weights. */
    inline model merged(const lora &adapter, float scale = 1) const;

    /** As a directory of safetensors. `format`: of changed matrices, see mc_model_save(). */
    void save(const std::string &directory, const std::optional<std::string> &format = {},
              const progress_callback &progress = {}) const {
        save_by(mc_model_save, directory, format, progress);
    }
    void save_gguf(const std::string &path, const std::optional<std::string> &format = {},
                   const progress_callback &progress = {}) const {
        save_by(mc_model_save_gguf, path, format, progress);
    }

    std::string architecture() const { return mc_model_architecture(get()); }
    std::size_t context_length() const noexcept { return mc_model_context_length(get()); }
    std::size_t vocab_size() const noexcept { return mc_model_vocab_size(get()); }
    std::size_t hidden_size() const noexcept { return mc_model_hidden_size(get()); }
    std::size_t layer_count() const noexcept { return mc_model_layer_count(get()); }
    std::uint64_t parameter_count() const noexcept { return mc_model_parameter_count(get()); }
    mc_dtype dtype() const noexcept { return mc_model_dtype(get()); }
    bool supports(mc_capability capability) const noexcept { return mc_model_supports(get(), capability); }
    std::string config_json() const {
        return detail::string_of([&](auto out, auto err) { return mc_model_config_json(get(), out, err); });
    }
    /** What computes which part of the model, and how its weights are kept. */
    std::string backend_json() const {
        return detail::string_of([&](auto out, auto err) { return mc_model_backend_json(get(), out, err); });
    }
    /** The tokens that end an answer, the usual one first. */
    std::vector<std::uint32_t> eos_tokens() const {
        return detail::tokens_of([&](auto out, auto err) { return mc_model_eos_tokens(get(), out, err); });
    }
    metal_candle::tokenizer tokenizer() const {
        return metal_candle::tokenizer(detail::make<mc_tokenizer, mc_tokenizer_free>(
            [&](auto out, auto err) { return mc_model_tokenizer(get(), out, err); }));
    }
    /** A conversation as the model's template writes it. */
    std::string render(const chat &messages, bool add_generation_prompt = true) const {
        return detail::string_of(
            [&](auto out, auto err) { return mc_model_render_chat(get(), messages.get(), add_generation_prompt, out, err); });
    }
    /** The same as token ids, which is how a session takes it. */
    std::vector<std::uint32_t> encode(const chat &messages, bool add_generation_prompt = true) const {
        return detail::tokens_of(
            [&](auto out, auto err) { return mc_model_encode_chat(get(), messages.get(), add_generation_prompt, out, err); });
    }

    /** Answers a prompt. */
    inline generation generate(std::string_view prompt, const generate_options &options = {}) const;
    /** The same, and `on_token` is called with each token. */
    template <class F> generation generate(std::string_view prompt, const generate_options &options, F &&on_token) const;

    /** Numbers of a vector. */
    inline std::size_t embed_dim(const embed_options &options = {}) const;
    /** (embed_dim) */
    inline std::vector<float> embed(std::string_view text, const embed_options &options = {}) const;
    /** (texts, embed_dim), one vector behind the other. */
    inline std::vector<float> embed(const std::vector<std::string_view> &texts, const embed_options &options = {}) const;
    mc_similarity similarity() const noexcept { return mc_model_similarity(get()); }
    /** How well each document answers the query, of a reranker. */
    inline std::vector<float> rerank(std::string_view query, const std::vector<std::string_view> &documents,
                                     const rerank_options &options = {}) const;

    const mc_model *get() const noexcept { return handle_.get(); }

private:
    explicit model(detail::handle<mc_model, mc_model_free> handle) : handle_(std::move(handle)) {}

    template <class Call> model(const model_options &options, Call &&call) {
        detail::progress_bridge bridge(options.progress);
        auto c = detail::to_c(options, bridge);
        mc_model *raw = nullptr;
        detail::outcome outcome;
        mc_status status = call(c.get(), &raw, outcome.out());
        handle_.reset(raw);
        bridge.rethrow();
        outcome.expect(status);
    }

    template <class Call> void save_by(Call call, const std::string &path, const std::optional<std::string> &format,
                                       const progress_callback &progress) const {
        detail::progress_bridge bridge(progress);
        detail::outcome outcome;
        mc_status status =
            call(get(), detail::c_text(path), detail::c_text(format), bridge.function(), bridge.user_data(), outcome.out());
        bridge.rethrow();
        outcome.expect(status);
    }

    detail::handle<mc_model, mc_model_free> handle_;
};

/** A LoRA adapter of one model. Immutable. */
class lora {
public:
    /** A directory as PEFT writes it. */
    lora(const model &base, const std::string &peft_dir)
        : handle_(detail::make<mc_lora, mc_lora_free>(
              [&](auto out, auto err) { return mc_lora_load(base.get(), detail::c_text(peft_dir), out, err); })) {}

    void save(const std::string &peft_dir) const {
        detail::run([&](auto err) { return mc_lora_save(get(), detail::c_text(peft_dir), err); });
    }
    std::size_t rank() const noexcept { return mc_lora_rank(get()); }
    float alpha() const noexcept { return mc_lora_alpha(get()); }
    std::uint64_t parameter_count() const noexcept { return mc_lora_parameter_count(get()); }
    std::string config_json() const {
        return detail::string_of([&](auto out, auto err) { return mc_lora_config_json(get(), out, err); });
    }
    const mc_lora *get() const noexcept { return handle_.get(); }

private:
    friend class trainer;
    explicit lora(detail::handle<mc_lora, mc_lora_free> handle) : handle_(std::move(handle)) {}
    detail::handle<mc_lora, mc_lora_free> handle_;
};

inline model model::merged(const lora &adapter, float scale) const {
    return model(detail::make<mc_model, mc_model_free>(
        [&](auto out, auto err) { return mc_model_merge(get(), adapter.get(), scale, out, err); }));
}

namespace detail {

/** Calls `set(loras, scales, count)`. */
template <class Set> void set_loras(const std::vector<std::pair<const lora *, float>> &adapters, Set &&set) {
    std::vector<const mc_lora *> handles;
    std::vector<float> scales;
    for (auto [adapter, scale] : adapters) {
        handles.push_back(adapter ? adapter->get() : nullptr);
        scales.push_back(scale);
    }
    set(handles.data(), scales.data(), handles.size());
}

using generate_options_handle = handle<mc_generate_options, mc_generate_options_free>;
using embed_options_handle = handle<mc_embed_options, mc_embed_options_free>;

inline generate_options_handle to_c(const generate_options &from, progress_bridge &bridge) {
    auto owned = handle<mc_generate_options, mc_generate_options_free>(mc_generate_options_new());
    mc_generate_options *options = owned.get();
    if (from.max_tokens) mc_generate_options_set_max_tokens(options, *from.max_tokens);
    if (from.temperature) mc_generate_options_set_temperature(options, *from.temperature);
    if (from.top_k) mc_generate_options_set_top_k(options, *from.top_k);
    if (from.top_p) mc_generate_options_set_top_p(options, *from.top_p);
    if (from.min_p) mc_generate_options_set_min_p(options, *from.min_p);
    if (from.repetition_penalty)
        mc_generate_options_set_repetition_penalty(options, *from.repetition_penalty, from.repetition_last_n);
    if (from.frequency_penalty) mc_generate_options_set_frequency_penalty(options, *from.frequency_penalty);
    if (from.presence_penalty) mc_generate_options_set_presence_penalty(options, *from.presence_penalty);
    for (auto [id, bias] : from.logit_bias) mc_generate_options_add_logit_bias(options, id, bias);
    if (from.seed) mc_generate_options_set_seed(options, *from.seed);
    for (const std::string &text : from.stop) mc_generate_options_add_stop(options, text.data(), text.size());
    if (from.json_schema) mc_generate_options_set_json_schema(options, from.json_schema->data(), from.json_schema->size());
    if (from.answer_format) mc_generate_options_set_answer_format(options, detail::c_text(*from.answer_format));
    if (from.tool_choice) mc_generate_options_set_tool_choice(options, detail::c_text(*from.tool_choice));
    if (from.reasoning_budget) mc_generate_options_set_reasoning_budget(options, *from.reasoning_budget);
    if (from.ignore_eos) mc_generate_options_set_ignore_eos(options, *from.ignore_eos);
    if (from.add_special) mc_generate_options_set_add_special(options, *from.add_special);
    if (from.prefill_chunk) mc_generate_options_set_prefill_chunk(options, *from.prefill_chunk);
    if (from.lora) mc_generate_options_set_lora(options, from.lora->get(), from.lora_scale);
    if (!from.loras.empty())
        set_loras(from.loras, [&](auto loras, auto scales, auto count) { mc_generate_options_set_loras(options, loras, scales, count); });
    mc_generate_options_set_cancel(options, raw(from.cancel));
    if (bridge.function()) mc_generate_options_set_prefill_progress(options, bridge.function(), bridge.user_data());
    if (from.json) mc_generate_options_set_json(options, from.json->data(), from.json->size());
    return owned;
}

inline embed_options_handle to_c(const embed_options &from, progress_bridge &bridge) {
    auto owned = handle<mc_embed_options, mc_embed_options_free>(mc_embed_options_new());
    mc_embed_options *options = owned.get();
    if (from.pooling) mc_embed_options_set_pooling(options, *from.pooling);
    if (from.normalize) mc_embed_options_set_normalize(options, *from.normalize);
    if (from.dimensions) mc_embed_options_set_dimensions(options, *from.dimensions);
    if (from.max_length) mc_embed_options_set_max_length(options, *from.max_length);
    if (from.batch_size) mc_embed_options_set_batch_size(options, *from.batch_size);
    if (from.prompt_name) mc_embed_options_set_prompt_name(options, c_text(*from.prompt_name));
    if (from.prefix) mc_embed_options_set_prefix(options, c_text(*from.prefix));
    if (from.lora) mc_embed_options_set_lora(options, from.lora->get(), from.lora_scale);
    if (!from.loras.empty())
        set_loras(from.loras, [&](auto loras, auto scales, auto count) { mc_embed_options_set_loras(options, loras, scales, count); });
    mc_embed_options_set_cancel(options, raw(from.cancel));
    if (bridge.function()) mc_embed_options_set_progress(options, bridge.function(), bridge.user_data());
    if (from.json) mc_embed_options_set_json(options, from.json->data(), from.json->size());
    return owned;
}

inline handle<mc_rerank_options, mc_rerank_options_free> to_c(const rerank_options &from) {
    auto owned = handle<mc_rerank_options, mc_rerank_options_free>(mc_rerank_options_new());
    mc_rerank_options *options = owned.get();
    if (from.activation) mc_rerank_options_set_activation(options, *from.activation);
    if (from.max_length) mc_rerank_options_set_max_length(options, *from.max_length);
    if (from.batch_size) mc_rerank_options_set_batch_size(options, *from.batch_size);
    if (from.prompt_name) mc_rerank_options_set_prompt_name(options, c_text(*from.prompt_name));
    if (from.prompt) mc_rerank_options_set_prompt(options, c_text(*from.prompt));
    mc_rerank_options_set_cancel(options, raw(from.cancel));
    if (from.json) mc_rerank_options_set_json(options, from.json->data(), from.json->size());
    return owned;
}

/** Calls `call(options, err)` with what an option's progress callback threw thrown behind it. */
template <class Options, class Call> void run_with(const Options &options, Call &&call) {
    progress_bridge bridge(options.progress);
    auto c = to_c(options, bridge);
    outcome o;
    mc_status status = call(c.get(), o.out());
    bridge.rethrow();
    o.expect(status);
}

/** `call(options, on_token, user_data, out, err)`, the C function that streams. */
template <class F, class Call> generation stream(const generate_options &options, F &on_token, Call &&call) {
    progress_bridge bridge(options.prefill_progress);
    auto c = to_c(options, bridge);
    callback<mc_token_event, token_of, F> tokens(on_token);
    mc_generation *raw = nullptr;
    outcome o;
    mc_status status = call(c.get(), &tokens.call, &tokens, &raw, o.out());
    generation_handle owned(raw);
    bridge.rethrow();
    tokens.rethrow();
    o.check(status);
    if (!owned) o.expect(status);
    return generation_of(raw);
}

} // namespace detail

template <class F> generation model::generate(std::string_view prompt, const generate_options &options, F &&on_token) const {
    return detail::stream(options, on_token, [&](auto c, auto function, void *user_data, auto out, auto err) {
        return mc_generate_stream(get(), prompt.data(), prompt.size(), c, function, user_data, out, err);
    });
}

inline generation model::generate(std::string_view prompt, const generate_options &options) const {
    detail::progress_bridge bridge(options.prefill_progress);
    auto c = detail::to_c(options, bridge);
    mc_generation *raw = nullptr;
    detail::outcome outcome;
    mc_status status = mc_generate(get(), prompt.data(), prompt.size(), c.get(), &raw, outcome.out());
    detail::generation_handle owned(raw);
    bridge.rethrow();
    outcome.check(status);
    if (!owned) outcome.expect(status);
    return detail::generation_of(raw);
}

inline std::size_t model::embed_dim(const embed_options &options) const {
    detail::progress_bridge none{progress_callback()};
    return mc_model_embed_dim(get(), detail::to_c(options, none).get());
}

inline std::vector<float> model::embed(std::string_view text, const embed_options &options) const {
    // A place, also where there is no vector: the call says why.
    std::vector<float> out(std::max<std::size_t>(embed_dim(options), 1));
    detail::run_with(
        options, [&](auto c, auto err) { return mc_embed(get(), text.data(), text.size(), c, out.data(), out.size(), err); });
    return out;
}

inline std::vector<float> model::embed(const std::vector<std::string_view> &texts, const embed_options &options) const {
    if (texts.empty()) return {};
    std::vector<const char *> data;
    std::vector<std::size_t> lens;
    for (std::string_view text : texts) {
        data.push_back(text.data() ? text.data() : "");
        lens.push_back(text.size());
    }
    std::vector<float> out(texts.size() * std::max<std::size_t>(embed_dim(options), 1));
    detail::run_with(options, [&](auto c, auto err) {
        return mc_embed_batch(get(), data.data(), lens.data(), texts.size(), c, out.data(), out.size(), err);
    });
    return out;
}

inline std::vector<float> model::rerank(std::string_view query, const std::vector<std::string_view> &documents,
                                        const rerank_options &options) const {
    std::vector<const char *> data;
    std::vector<std::size_t> lens;
    // Of no documents there is a place too.
    data.reserve(documents.size() + 1);
    for (std::string_view text : documents) {
        data.push_back(text.data() ? text.data() : "");
        lens.push_back(text.size());
    }
    std::vector<float> out(documents.size());
    float none = 0;
    detail::outcome outcome;
    outcome.expect(mc_rerank(get(), query.data(), query.size(), data.data(), lens.data(), documents.size(), detail::to_c(options).get(),
                             out.empty() ? &none : out.data(), out.size(), outcome.out()));
    return out;
}

/** Of each query, the nearest `k` of the documents, the nearest first; both (rows, dim), one vector behind the other. */
inline std::vector<std::vector<hit>> nearest_each(mc_similarity similarity, const std::vector<float> &queries,
                                                  const std::vector<float> &documents, std::size_t dim, std::size_t k) {
    if (dim == 0 || queries.size() % dim != 0 || documents.size() % dim != 0)
        throw error(MC_ERROR_INVALID_ARGUMENT, "expected whole vectors of " + std::to_string(dim) + " numbers, found " +
                                                   std::to_string(queries.size()) + " and " + std::to_string(documents.size()));
    const std::size_t rows = queries.size() / dim;
    if (k > documents.size() / dim) k = documents.size() / dim;
    std::vector<std::size_t> indices(rows * k);
    std::vector<float> scores(rows * k);
    if (k > 0)
        detail::run([&](auto err) {
            return mc_similarity_top_k(similarity, queries.data(), rows, documents.data(), documents.size() / dim, dim, k,
                                       indices.data(), scores.data(), err);
        });
    std::vector<std::vector<hit>> hits(rows);
    for (std::size_t at = 0; at < rows * k; at++) hits[at / k].push_back({indices[at], scores[at]});
    return hits;
}

/** The nearest `k` of the documents, the nearest first; the query is one vector. */
inline std::vector<hit> nearest(mc_similarity similarity, const std::vector<float> &query, const std::vector<float> &documents,
                                std::size_t k) {
    return nearest_each(similarity, query, documents, query.size(), k)[0];
}

/** An answer, token by token: for (const token &t : session.tokens()) … Leaving the loop ends the answer where it is. */
class token_range {
public:
    struct sentinel {};

    class iterator {
    public:
        using iterator_category = std::input_iterator_tag;
        using value_type = token;
        using difference_type = std::ptrdiff_t;
        using pointer = const token *;
        using reference = const token &;

        reference operator*() const noexcept { return range_->token_; }
        pointer operator->() const noexcept { return &range_->token_; }
        iterator &operator++() {
            range_->advance();
            return *this;
        }
        void operator++(int) { range_->advance(); }
        friend bool operator==(const iterator &self, sentinel) noexcept { return self.is_done(); }
        friend bool operator!=(const iterator &self, sentinel) noexcept { return !self.is_done(); }

    private:
        friend class token_range;
        explicit iterator(token_range *range) : range_(range) {}
        bool is_done() const noexcept { return range_->is_done_; }
        token_range *range_;
    };

    token_range(const token_range &) = delete;
    token_range &operator=(const token_range &) = delete;
    /** Discards the answer, unless finish() took it; what was read of it stays in the session. */
    ~token_range() {
        if (!session_) return;
        [[maybe_unused]] mc_status status = mc_session_end(session_, nullptr, nullptr);
    }

    /** The first call asks for the first token. */
    iterator begin() {
        if (!is_started_) advance();
        return iterator(this);
    }
    sentinel end() const noexcept { return {}; }

    /** Ends the answer, complete or not, and gives all of it. */
    generation finish() {
        mc_session *session = std::exchange(session_, nullptr);
        if (!session) throw error(MC_ERROR_INVALID_ARGUMENT, "the answer was taken already");
        is_done_ = true;
        return detail::generate([&](auto out, auto err) { return mc_session_end(session, out, err); });
    }

private:
    friend class session;
    explicit token_range(mc_session *session, const generate_options &options) {
        detail::progress_bridge none{progress_callback()};
        auto c = detail::to_c(options, none);
        detail::run([&](auto err) { return mc_session_begin(session, c.get(), err); });
        session_ = session;
    }

    void advance() {
        is_started_ = true;
        if (!session_) return;
        const mc_token_event *event = nullptr;
        detail::outcome outcome;
        is_done_ = outcome.check(mc_session_next(session_, &event, outcome.out())) != MC_OK;
        if (!is_done_) token_ = detail::token_of(*event);
    }

    mc_session *session_ = nullptr;
    bool is_started_ = false, is_done_ = false;
    token token_{};
};

/** What a model has read so far. One thread at a time. */
class session {
public:
    /** `max_context` tokens; 0 = the model's own. */
    explicit session(const model &of, std::size_t max_context = 0)
        : handle_(detail::make<mc_session, mc_session_free>(
              [&](auto out, auto err) { return mc_session_new(of.get(), max_context, out, err); })) {}
    /** As save() left it. */
    static session load(const model &of, const std::string &path) {
        return session(detail::make<mc_session, mc_session_free>(
            [&](auto out, auto err) { return mc_session_load(of.get(), detail::c_text(path), out, err); }));
    }
    void save(const std::string &path) const {
        detail::run([&](auto err) { return mc_session_save(get(), detail::c_text(path), err); });
    }
    /** Another one with the same past. */
    session fork() const {
        return session(
            detail::make<mc_session, mc_session_free>([&](auto out, auto err) { return mc_session_fork(get(), out, err); }));
    }

    void append(std::string_view text, const cancel *stop = nullptr) {
        detail::run([&](auto err) { return mc_session_append(get(), text.data(), text.size(), detail::raw(stop), err); });
    }
    void append(const std::vector<std::uint32_t> &tokens, const cancel *stop = nullptr) {
        detail::run(
            [&](auto err) { return mc_session_append_tokens(get(), tokens.data(), tokens.size(), detail::raw(stop), err); });
    }
    /** In place of what the session holds; what both begin with is not read again. */
    void set_prompt(std::string_view text, const cancel *stop = nullptr) {
        detail::run([&](auto err) { return mc_session_set_prompt(get(), text.data(), text.size(), detail::raw(stop), err); });
    }
    /** The conversation, ready for an answer; what the session has of it is not read again. */
    void set_chat(const chat &messages, const cancel *stop = nullptr) {
        detail::run([&](auto err) { return mc_session_set_chat(get(), messages.get(), detail::raw(stop), err); });
    }

    /** Answers; `on_token` is called with each token. */
    template <class F> generation generate(const generate_options &options, F &&on_token) {
        return detail::stream(options, on_token, [&](auto c, auto function, void *user_data, auto out, auto err) {
            return mc_session_generate_stream(get(), c, function, user_data, out, err);
        });
    }
    generation generate(const generate_options &options = {}) {
        return generate(options, [](const token &) {});
    }
    /** Answers token by token, when they are asked for. The range must not outlive the session. */
    token_range tokens(const generate_options &options = {}) { return token_range(get(), options); }

    std::size_t position() const noexcept { return mc_session_position(get()); }
    /** The bytes that it takes now. */
    std::uint64_t memory() const {
        std::uint64_t bytes = 0;
        detail::run([&](auto err) { return mc_session_memory(get(), &bytes, err); });
        return bytes;
    }
    void truncate(std::size_t position) {
        detail::run([&](auto err) { return mc_session_truncate(get(), position, err); });
    }
    /** Scores of the next token, (vocabulary). `vocab_size`: the model's. */
    std::vector<float> logits(std::size_t vocab_size) const {
        std::vector<float> out(vocab_size);
        detail::run([&](auto err) { return mc_session_logits(get(), out.data(), out.size(), err); });
        return out;
    }
    /** The `count` most probable next tokens with the natural logarithms of their probabilities, the most probable first. */
    std::vector<std::pair<std::uint32_t, float>> top_logprobs(std::size_t count) const {
        std::vector<std::uint32_t> ids(count + 1); // So that there is a place for none, which the library refuses.
        std::vector<float> logprobs(count + 1);
        detail::run([&](auto err) { return mc_session_top_logprobs(get(), count, ids.data(), logprobs.data(), err); });
        std::vector<std::pair<std::uint32_t, float>> top;
        for (std::size_t at = 0; at < count; at++) top.emplace_back(ids[at], logprobs[at]);
        return top;
    }
    /** The tokens that the session holds. */
    std::vector<std::uint32_t> held() const {
        return detail::tokens_of([&](auto out, auto err) { return mc_session_tokens(get(), out, err); });
    }
    /** What the model says of these tokens behind what the session holds: natural logarithms. */
    std::vector<float> score(const std::vector<std::uint32_t> &tokens, const cancel *stop = nullptr) {
        std::vector<float> out(tokens.size());
        float nothing = 0;
        detail::run([&](auto err) {
            float *to = out.empty() ? &nothing : out.data();
            return mc_session_score_tokens(get(), tokens.data(), tokens.size(), to, detail::raw(stop), err);
        });
        return out;
    }

    void set_lora(const lora *adapter, float scale = 1) {
        detail::run([&](auto err) { return mc_session_set_lora(get(), adapter ? adapter->get() : nullptr, scale, err); });
    }
    void set_loras(const std::vector<std::pair<const lora *, float>> &adapters) {
        detail::set_loras(adapters, [&](auto loras, auto scales, auto count) {
            detail::run([&](auto err) { return mc_session_set_loras(get(), loras, scales, count, err); });
        });
    }

    mc_session *get() const noexcept { return handle_.get(); }

private:
    explicit session(detail::handle<mc_session, mc_session_free> handle) : handle_(std::move(handle)) {}
    detail::handle<mc_session, mc_session_free> handle_;
};

/** What became of one session in a call of next_tokens(). */
struct next_token {
    /** MC_OK with a token, MC_DONE, MC_CANCELLED, or what was wrong. */
    mc_status status;
    std::optional<metal_candle::token> token;
};

/**
 * The next token of several answers in one pass, each begun by session::tokens(): a token_range that is held, and not iterated.
 * Throws if each session has the same error, as where the call as a whole is wrong; else each has its own status.
 */
inline std::vector<next_token> next_tokens(const std::vector<session *> &sessions) {
    std::vector<mc_session *> handles;
    for (session *each : sessions) handles.push_back(each->get());
    std::vector<const mc_token_event *> events(handles.size());
    std::vector<mc_status> statuses(handles.size(), MC_STATUS_FORCE32);
    detail::outcome outcome;
    mc_status status = mc_sessions_next(handles.data(), handles.size(), events.data(), statuses.data(), outcome.out());
    // Where the call as a whole is wrong, sessions may have no status.
    auto is_whole = [&](mc_status each) { return each == status || each == MC_STATUS_FORCE32; };
    if (std::all_of(statuses.begin(), statuses.end(), is_whole)) outcome.check(status);
    std::vector<next_token> tokens;
    for (std::size_t at = 0; at < handles.size(); at++) {
        next_token next{statuses[at], std::nullopt};
        if (next.status == MC_OK) next.token = detail::token_of(*events[at]);
        tokens.push_back(next);
    }
    return tokens;
}

/** What an adapter is trained on. */
class dataset {
public:
    dataset() : handle_(detail::handle<mc_dataset, mc_dataset_free>(mc_dataset_new())) {}
    explicit dataset(const std::string &jsonl_path)
        : handle_(detail::make<mc_dataset, mc_dataset_free>(
              [&](auto out, auto err) { return mc_dataset_load_jsonl(detail::c_text(jsonl_path), out, err); })) {}

    dataset &add_text(std::string_view text) {
        detail::run([&](auto err) { return mc_dataset_add_text(handle_.get(), text.data(), text.size(), err); });
        return *this;
    }
    dataset &add_completion(std::string_view prompt, std::string_view completion) {
        detail::run([&](auto err) {
            return mc_dataset_add_completion(handle_.get(), prompt.data(), prompt.size(), completion.data(), completion.size(),
                                             err);
        });
        return *this;
    }
    dataset &add_chat(const chat &conversation) {
        detail::run([&](auto err) { return mc_dataset_add_chat(handle_.get(), conversation.get(), err); });
        return *this;
    }
    std::size_t size() const noexcept { return mc_dataset_len(get()); }
    const mc_dataset *get() const noexcept { return handle_.get(); }

private:
    detail::handle<mc_dataset, mc_dataset_free> handle_;
};

/** The shape of a new adapter: mc_lora_config. */
struct lora_config {
    std::optional<std::size_t> rank;
    std::optional<double> alpha, dropout;
    std::optional<bool> rslora;
    std::optional<std::uint64_t> seed;
    /** Names of modules, such as "q_proj"; none = the default ones. */
    std::vector<std::string> targets;
    /** Options as JSON, by the names that mc_lora_config_set_json() tells; they count more than those here. */
    std::optional<std::string> json;
    /** Training goes on from this one. */
    const lora *initial = nullptr;
};

/** How an adapter is trained: mc_train_options. */
struct train_options {
    std::optional<double> learning_rate, weight_decay, adam_epsilon, grad_clip;
    std::optional<std::pair<double, double>> adam_betas;
    std::optional<std::size_t> batch_size, epochs, max_length, grad_accumulation;
    std::optional<mc_weighting> weighting;
    struct learning_rate_schedule {
        mc_schedule kind = MC_SCHEDULE_CONSTANT;
        std::uint64_t warmup_steps = 0, total_steps = 0;
    };
    std::optional<learning_rate_schedule> schedule;
    std::optional<bool> warmup_from_zero, mask_prompt, gradient_checkpointing;
    std::optional<std::uint64_t> seed, eval_every, patience, max_steps;
    /** Where checkpoints go, and after how many steps. */
    std::optional<std::pair<std::string, std::uint64_t>> checkpoint;
    /** Options as JSON, by the names that mc_train_options_set_json() tells; they count more than those here. */
    std::optional<std::string> json;
    const metal_candle::cancel *cancel = nullptr;
};

namespace detail {

inline handle<mc_lora_config, mc_lora_config_free> to_c(const lora_config &from) {
    auto owned = handle<mc_lora_config, mc_lora_config_free>(mc_lora_config_new());
    mc_lora_config *config = owned.get();
    if (from.rank) mc_lora_config_set_rank(config, *from.rank);
    if (from.alpha) mc_lora_config_set_alpha(config, *from.alpha);
    if (from.dropout) mc_lora_config_set_dropout(config, *from.dropout);
    if (from.rslora) mc_lora_config_set_rslora(config, *from.rslora);
    if (from.seed) mc_lora_config_set_seed(config, *from.seed);
    for (const std::string &module : from.targets) mc_lora_config_add_target(config, c_text(module));
    if (from.initial) mc_lora_config_set_initial(config, from.initial->get());
    if (from.json) mc_lora_config_set_json(config, from.json->data(), from.json->size());
    return owned;
}

inline handle<mc_train_options, mc_train_options_free> to_c(const train_options &from) {
    auto owned = handle<mc_train_options, mc_train_options_free>(mc_train_options_new());
    mc_train_options *options = owned.get();
    if (from.learning_rate) mc_train_options_set_learning_rate(options, *from.learning_rate);
    if (from.weight_decay) mc_train_options_set_weight_decay(options, *from.weight_decay);
    if (from.adam_betas) mc_train_options_set_adam_betas(options, from.adam_betas->first, from.adam_betas->second);
    if (from.adam_epsilon) mc_train_options_set_adam_epsilon(options, *from.adam_epsilon);
    if (from.grad_clip) mc_train_options_set_grad_clip(options, *from.grad_clip);
    if (from.grad_accumulation) mc_train_options_set_grad_accumulation(options, *from.grad_accumulation);
    if (from.batch_size) mc_train_options_set_batch_size(options, *from.batch_size);
    if (from.epochs) mc_train_options_set_epochs(options, *from.epochs);
    if (from.max_length) mc_train_options_set_max_length(options, *from.max_length);
    if (from.weighting) mc_train_options_set_weighting(options, *from.weighting);
    if (from.schedule)
        mc_train_options_set_schedule(options, from.schedule->kind, from.schedule->warmup_steps, from.schedule->total_steps);
    if (from.warmup_from_zero) mc_train_options_set_warmup_from_zero(options, *from.warmup_from_zero);
    if (from.mask_prompt) mc_train_options_set_mask_prompt(options, *from.mask_prompt);
    if (from.gradient_checkpointing) mc_train_options_set_gradient_checkpointing(options, *from.gradient_checkpointing);
    if (from.seed) mc_train_options_set_seed(options, *from.seed);
    if (from.eval_every) mc_train_options_set_eval_every(options, *from.eval_every);
    if (from.patience) mc_train_options_set_patience(options, *from.patience);
    if (from.max_steps) mc_train_options_set_max_steps(options, *from.max_steps);
    if (from.checkpoint) mc_train_options_set_checkpoint(options, c_text(from.checkpoint->first), from.checkpoint->second);
    mc_train_options_set_cancel(options, raw(from.cancel));
    if (from.json) mc_train_options_set_json(options, from.json->data(), from.json->size());
    return owned;
}

inline const mc_train_event &train_event_of(const mc_train_event &event) { return event; }

} // namespace detail

/** Sequences of token ids for one step of training, with a mask where not all targets count. */
struct token_batch {
    std::vector<std::vector<std::uint32_t>> sequences;
    /** As `sequences`: 1 for a token that is learnt. None = all are. */
    std::vector<std::vector<std::uint8_t>> loss_masks;
};

/** Trains an adapter. One thread at a time. */
class trainer {
public:
    explicit trainer(const model &base, const lora_config &config = {}, const train_options &options = {})
        : handle_(detail::make<mc_lora_trainer, mc_lora_trainer_free>([&](auto out, auto err) {
              return mc_lora_trainer_new(base.get(), detail::to_c(config).get(), detail::to_c(options).get(), out, err);
          })) {}
    /** As a checkpoint left it, with its options: its next step is the one that would have come. */
    static trainer resume(const model &base, const std::string &checkpoint_dir) {
        return resumed(base, checkpoint_dir, nullptr);
    }
    /** The same with other options; those that decide what a step sees must be the checkpoint's. */
    static trainer resume(const model &base, const std::string &checkpoint_dir, const train_options &options) {
        return resumed(base, checkpoint_dir, detail::to_c(options).get());
    }
    static std::uint64_t estimate_memory(const model &base, const lora_config &config = {}, const train_options &options = {}) {
        std::uint64_t bytes = 0;
        detail::run([&](auto err) {
            return mc_model_estimate_training_memory(base.get(), detail::to_c(config).get(), detail::to_c(options).get(), &bytes, err);
        });
        return bytes;
    }

    /** Trains to the end of the options; `on_step` is called with each mc_train_event. Stopped by it, the trainer can go on. */
    template <class F> void train(const dataset &data, const dataset *eval, F &&on_step) {
        detail::callback<mc_train_event, detail::train_event_of, std::remove_reference_t<F>> steps(on_step);
        detail::outcome outcome;
        mc_status status = mc_lora_trainer_train(get(), data.get(), eval ? eval->get() : nullptr, &steps.call, &steps, outcome.out());
        steps.rethrow();
        outcome.expect(status);
    }
    void train(const dataset &data, const dataset *eval = nullptr) {
        train(data, eval, [](const mc_train_event &) {});
    }
    /** One step on these sequences; the loss. */
    float step(const token_batch &batch) { return step_by(mc_lora_trainer_train_step, batch); }
    /** The loss alone. */
    float evaluate(const token_batch &batch) { return step_by(mc_lora_trainer_eval_step, batch); }

    std::uint64_t step_count() const noexcept { return mc_lora_trainer_step_count(get()); }
    struct update {
        /** From 1; 0 if there was none yet. */
        std::uint64_t step = 0;
        double learning_rate = 0;
        /** The length of the gradient of all weights together, before it was cut. */
        float grad_norm = 0;
    };
    /** What the last step did. */
    update last_update() const {
        update last;
        detail::run([&](auto err) {
            return mc_lora_trainer_last_update(get(), &last.step, &last.learning_rate, &last.grad_norm, err);
        });
        return last;
    }
    /** As trained so far. */
    lora adapter() const {
        return lora(
            detail::make<mc_lora, mc_lora_free>([&](auto out, auto err) { return mc_lora_trainer_adapter(get(), out, err); }));
    }
    void save(const std::string &checkpoint_dir) const {
        detail::run([&](auto err) { return mc_lora_trainer_save(get(), detail::c_text(checkpoint_dir), err); });
    }
    mc_lora_trainer *get() const noexcept { return handle_.get(); }

private:
    explicit trainer(detail::handle<mc_lora_trainer, mc_lora_trainer_free> handle) : handle_(std::move(handle)) {}

    static trainer resumed(const model &base, const std::string &checkpoint_dir, const mc_train_options *options) {
        return trainer(detail::make<mc_lora_trainer, mc_lora_trainer_free>([&](auto out, auto err) {
            return mc_lora_trainer_resume(base.get(), detail::c_text(checkpoint_dir), options, out, err);
        }));
    }

    template <class Call> float step_by(Call call, const token_batch &batch) {
        std::vector<std::uint32_t> tokens;
        std::vector<std::uint8_t> mask;
        std::vector<std::size_t> offsets{0};
        if (!batch.loss_masks.empty() && batch.loss_masks.size() != batch.sequences.size())
            throw error(MC_ERROR_INVALID_ARGUMENT, "loss_masks: expected one for each sequence, or none");
        for (std::size_t at = 0; at < batch.sequences.size(); at++) {
            const auto &sequence = batch.sequences[at];
            tokens.insert(tokens.end(), sequence.begin(), sequence.end());
            offsets.push_back(tokens.size());
            if (batch.loss_masks.empty()) continue;
            if (batch.loss_masks[at].size() != sequence.size())
                throw error(MC_ERROR_INVALID_ARGUMENT, "loss_masks[" + std::to_string(at) + "]: expected as many as tokens");
            mask.insert(mask.end(), batch.loss_masks[at].begin(), batch.loss_masks[at].end());
        }
        static const std::uint32_t none = 0;
        float loss = 0;
        detail::run([&](auto err) {
            return call(get(), tokens.empty() ? &none : tokens.data(), batch.loss_masks.empty() ? nullptr : mask.data(),
                        offsets.data(), batch.sequences.size(), &loss, err);
        });
        return loss;
    }

    detail::handle<mc_lora_trainer, mc_lora_trainer_free> handle_;
};

/** Of the library that is linked; MC_VERSION_STRING is the header's. */
inline std::string version() { return mc_version_string(); }
/** MC_VERSION_NUMBER of the library that is linked. */
inline std::uint32_t version_number() noexcept { return mc_version_number(); }
/** Whether the library that is linked has the ABI of this header. */
inline bool is_compatible() noexcept { return mc_abi_version() == MC_ABI_VERSION; }
/** Whether the library was built with "metal", "cuda", … */
inline bool has_feature(const std::string &name) { return mc_has_feature(detail::c_text(name)); }
/** The architectures that this build knows: a JSON array. */
inline std::string architectures_json() {
    return detail::string_of([](auto out, auto err) { return mc_architectures_json(out, err); });
}
/** Handles of the library that are not freed. */
inline std::size_t live_objects() noexcept { return mc_live_objects(); }
/** Computes with so many threads of the processor from now on, with the same results; 0 = as many as there are processors. */
inline void set_threads(std::uint32_t count) {
    detail::run([&](auto err) { return mc_set_threads(count, err); });
}
/** How many threads compute; 0 if the system gives none. */
inline std::uint32_t threads() noexcept { return mc_threads(); }
/** Gives memory back to the system that is kept for later. */
inline void trim_memory(std::uint64_t keep_bytes = 0) {
    detail::run([&](auto err) { return mc_trim_memory(keep_bytes, err); });
}

using log_callback = std::function<void(mc_log_level, std::string_view target, std::string_view message)>;

/** Where messages go, from any thread; an empty function ends it. What it throws is dropped. */
inline void set_log(log_callback function, mc_log_level max_level = MC_LOG_INFO) {
    if (!function) {
        detail::run([&](auto err) { return mc_log_set(nullptr, nullptr, nullptr, MC_LOG_OFF, err); });
        return;
    }
    auto owned = std::make_unique<log_callback>(std::move(function));
    auto call = [](void *user_data, mc_log_level level, const char *target, const char *message, std::size_t message_len) {
        try {
            (*static_cast<log_callback *>(user_data))(level, target, {message, message_len});
        } catch (...) {
        }
    };
    auto destroy = [](void *user_data) { delete static_cast<log_callback *>(user_data); };
    detail::run([&](auto err) { return mc_log_set(call, owned.get(), destroy, max_level, err); });
    static_cast<void>(owned.release()); // From now on the library frees it.
}

} // namespace metal_candle

#endif
