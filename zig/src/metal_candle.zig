//! A language model inside a Zig program, over the C ABI of metal-candle.
//!
//! ```zig
//! const model = try mc.Model.load("models/tiny-coder", .{});
//! defer model.deinit();
//! const answer = try model.generate("fn main() {", .{ .max_tokens = 32 });
//! defer answer.deinit();
//! std.debug.print("{s}\n", .{answer.text()});
//! ```
//!
//! These rules hold for every declaration and are not repeated there.
//!
//! - A failure is an `Error`; `message()` and `details()` tell what the last one on this thread was about.
//! - A handle is a struct of one pointer with a `deinit`; what it was made from stays alive as long as it does, so handles are freed in
//!   any order, each once. Slices that a handle gives are valid until its `deinit`.
//! - Threads share a `Model`, `Tokenizer`, `Lora`, `Device` and `Cancel`. A `Session`, `Chat`, `Dataset` and `Trainer` take one call at a
//!   time: a second one gives `error.Busy`, does not wait and changes nothing.
//! - Callbacks run on the thread of their call before it returns, and say with a `Flow` whether to go on. Nothing of theirs crosses the
//!   library: an error of the program's own belongs into the callback's context.
//! - Options are structs, read when a call begins. A field that is null leaves the model's or the library's own default.
//! - Text is UTF-8; paths and names end with a zero.
//!
//! The manual of what each call computes, with units, ranges and every status, is include/metal_candle.h; `c` is that header.
const std = @import("std");

/// The header as Zig reads it, for what this module leaves out.
pub const c = @import("c");

// Errors

/// How a call failed: the statuses of the header.
pub const Error = error{
    /// An argument or option is outside its range.
    InvalidArgument,
    InvalidUtf8,
    /// A file, directory, token, device or chat template does not exist.
    NotFound,
    Io,
    Network,
    /// Content contradicts its format.
    Format,
    Unsupported,
    /// More tokens than the context holds.
    ContextFull,
    OutOfMemory,
    Device,
    /// The device is suspended; call `Device.@"resume"` first.
    Suspended,
    /// The object is in use by another call; nothing was changed.
    Busy,
    /// Two things that must belong together do not.
    Mismatch,
    /// An earlier `Panic` left the object in an unknown state; it can only be freed.
    Poisoned,
    Template,
    /// A defect of the library.
    Panic,
    /// Stopped by its `Cancel` or its callback.
    Cancelled,
    /// A status that this module does not know.
    Unknown,
};

// Copies, so that a thread that ends leaves no error object behind.
threadlocal var last_message: [1024]u8 = undefined;
threadlocal var last_message_len: usize = 0;
threadlocal var last_details: [4096]u8 = undefined;
threadlocal var last_details_len: usize = 0;

/// What went wrong in the last failure on this thread, in one line: subject, expected, found. "" before the first; at most 1024 bytes.
pub fn message() []const u8 {
    return last_message[0..last_message_len];
}

/// The message and every cause below it, one a line, at most 4096 bytes.
pub fn details() []const u8 {
    return last_details[0..last_details_len];
}

fn remember(line: []const u8, lines: []const u8) void {
    last_message_len = @min(line.len, last_message.len);
    @memcpy(last_message[0..last_message_len], line[0..last_message_len]);
    last_details_len = @min(lines.len, last_details.len);
    @memcpy(last_details[0..last_details_len], lines[0..last_details_len]);
}

fn invalid(line: []const u8) Error {
    remember(line, line);
    return error.InvalidArgument;
}

/// The error of a status; frees the error object. Outcomes pass.
fn check(status: c.mc_status, failure: ?*c.mc_error) Error!void {
    if (status < 16 and status != c.MC_CANCELLED) return;
    const known = errorOf(status);
    if (failure) |object| {
        remember(std.mem.span(c.mc_error_message(object)), std.mem.span(c.mc_error_details(object)));
        std.debug.assert(c.mc_error_code(object) == status);
        c.mc_error_free(object);
    } else {
        const name = std.mem.span(c.mc_status_name(status));
        remember(name, name);
    }
    return known;
}

fn errorOf(status: c.mc_status) Error {
    return switch (status) {
        c.MC_CANCELLED => error.Cancelled,
        c.MC_ERROR_INVALID_ARGUMENT => error.InvalidArgument,
        c.MC_ERROR_INVALID_UTF8 => error.InvalidUtf8,
        c.MC_ERROR_NOT_FOUND => error.NotFound,
        c.MC_ERROR_IO => error.Io,
        c.MC_ERROR_NETWORK => error.Network,
        c.MC_ERROR_FORMAT => error.Format,
        c.MC_ERROR_UNSUPPORTED => error.Unsupported,
        c.MC_ERROR_CONTEXT_FULL => error.ContextFull,
        c.MC_ERROR_OUT_OF_MEMORY => error.OutOfMemory,
        c.MC_ERROR_DEVICE => error.Device,
        c.MC_ERROR_SUSPENDED => error.Suspended,
        c.MC_ERROR_BUSY => error.Busy,
        c.MC_ERROR_MISMATCH => error.Mismatch,
        c.MC_ERROR_POISONED => error.Poisoned,
        c.MC_ERROR_TEMPLATE => error.Template,
        c.MC_ERROR_PANIC => error.Panic,
        else => error.Unknown,
    };
}

// Callbacks

/// What a callback says.
pub const Flow = enum { go_on, stop };

/// A function that hears of events, with the context that it is called with.
pub fn Callback(comptime Event: type) type {
    return struct {
        context: *anyopaque,
        function: *const fn (*anyopaque, Event) Flow,

        const Self = @This();

        /// Of a pointer and a function that takes it: `.of(&state, State.hear)`. The pointer is used until the call is over.
        pub fn of(context: anytype, comptime function: fn (@TypeOf(context), Event) Flow) Self {
            const Wrapper = struct {
                fn call(opaque_context: *anyopaque, event: Event) Flow {
                    return function(@ptrCast(@alignCast(opaque_context)), event);
                }
            };
            return .{ .context = @ptrCast(context), .function = Wrapper.call };
        }

        /// As C takes it: `user_data` points to the Self.
        fn trampoline(user_data: ?*anyopaque, event: [*c]const Raw(Event)) callconv(.c) i32 {
            const self: *const Self = @ptrCast(@alignCast(user_data.?));
            return switch (self.function(self.context, Event.of(event))) {
                .go_on => c.MC_CONTINUE,
                .stop => c.MC_STOP,
            };
        }

        fn userData(self: *const ?Self) ?*anyopaque {
            return if (self.*) |*callback| @ptrCast(@constCast(callback)) else null;
        }

        fn pointer(self: ?Self) ?*const fn (?*anyopaque, [*c]const Raw(Event)) callconv(.c) i32 {
            return if (self == null) null else trampoline;
        }
    };
}

fn Raw(comptime Event: type) type {
    return switch (Event) {
        Progress => c.mc_progress_event,
        Token => c.mc_token_event,
        TrainStep => c.mc_train_event,
        else => comptime unreachable,
    };
}

pub const OnProgress = Callback(Progress);
pub const OnToken = Callback(Token);
pub const OnStep = Callback(TrainStep);

/// Which part of a long call is running, and with it what `Progress` counts.
pub const Stage = enum(c_uint) {
    download = c.MC_STAGE_DOWNLOAD,
    read = c.MC_STAGE_READ,
    quantize = c.MC_STAGE_QUANTIZE,
    compile = c.MC_STAGE_COMPILE,
    prefill = c.MC_STAGE_PREFILL,
    embed = c.MC_STAGE_EMBED,
    write = c.MC_STAGE_WRITE,
    _,
};

/// How far a long call is: bytes, kernels, tokens or texts, as its stage says.
pub const Progress = struct {
    stage: Stage,
    done: u64,
    /// 0 where it is not known.
    total: u64,

    fn of(event: *const c.mc_progress_event) Progress {
        return .{ .stage = @fromBackingInt(@intCast(event.stage)), .done = event.done, .total = event.total };
    }

    /// `done / total`, 0 to 1; 0 where the total is not known.
    pub fn fraction(self: Progress) f64 {
        if (self.total == 0) return 0;
        return @as(f64, @floatFromInt(self.done)) / @as(f64, @floatFromInt(self.total));
    }
};

// The library itself

/// The version of the library that is running, such as "0.1.0".
pub fn version() []const u8 {
    return std.mem.span(c.mc_version_string());
}

/// major * 1000000 + minor * 1000 + patch.
pub fn versionNumber() u32 {
    return c.mc_version_number();
}

/// The binary interface of the library that is running; compare it with `c.MC_ABI_VERSION`.
pub fn abiVersion() u32 {
    return c.mc_abi_version();
}

/// Whether the library was built with a feature: "metal", "cuda", "hub" or "fault-injection".
pub fn hasFeature(name: [:0]const u8) bool {
    return c.mc_has_feature(name);
}

/// How many handles exist in the process; 0 when everything was freed. For leak tests.
pub fn liveObjects() usize {
    return c.mc_live_objects();
}

/// Computes with so many threads of the processor from now on, with the same results: 1 to 1024, or 0 for as many as there are processors.
/// Where the system gives no so many, those there were stay in use: `error.OutOfMemory`.
pub fn setThreads(count: u32) Error!void {
    var failure: ?*c.mc_error = null;
    try check(c.mc_set_threads(count, &failure), failure);
}

/// How many threads of the processor compute; 0 if the system gives none.
pub fn threads() u32 {
    return c.mc_threads();
}

/// Gives memory that the library keeps for reuse back to the system; `keep_bytes` of it may stay.
pub fn trimMemory(keep_bytes: u64) Error!void {
    var failure: ?*c.mc_error = null;
    try check(c.mc_trim_memory(keep_bytes, &failure), failure);
}

pub const LogLevel = enum(c_uint) {
    off = c.MC_LOG_OFF,
    err = c.MC_LOG_ERROR,
    warn = c.MC_LOG_WARN,
    info = c.MC_LOG_INFO,
    debug = c.MC_LOG_DEBUG,
    trace = c.MC_LOG_TRACE,
    _,
};

/// Sets the process's log function, called with `context`, the level, the part of the library and the message. Unlike other callbacks it
/// is kept, and called on whatever thread logs, on several at a time; `context` must live until it is replaced.
pub fn setLog(max_level: LogLevel, context: anytype, comptime function: fn (@TypeOf(context), LogLevel, []const u8, []const u8) void) Error!void {
    const Wrapper = struct {
        fn call(user_data: ?*anyopaque, level: c.mc_log_level, target: [*c]const u8, text: [*c]const u8, len: usize) callconv(.c) void {
            function(@ptrCast(@alignCast(user_data.?)), @fromBackingInt(@intCast(level)), std.mem.span(target), text[0..len]);
        }
    };
    var failure: ?*c.mc_error = null;
    try check(c.mc_log_set(Wrapper.call, @ptrCast(context), null, @backingInt(max_level), &failure), failure);
}

/// Removes the log function.
pub fn removeLog() Error!void {
    var failure: ?*c.mc_error = null;
    try check(c.mc_log_set(null, null, null, c.MC_LOG_OFF, &failure), failure);
}

/// The architectures that this build knows: a JSON array of texts, as `model_type` of config.json has them.
pub fn architecturesJson() Error!String {
    var out: ?*c.mc_string = null;
    var failure: ?*c.mc_error = null;
    try check(c.mc_architectures_json(&out, &failure), failure);
    return .{ .handle = out.? };
}

/// Text that a call returned.
pub const String = struct {
    handle: *c.mc_string,

    pub fn slice(self: String) []const u8 {
        return c.mc_string_data(self.handle)[0..c.mc_string_len(self.handle)];
    }

    pub fn deinit(self: String) void {
        c.mc_string_free(self.handle);
    }
};

/// Token ids that a call returned.
pub const Tokens = struct {
    handle: *c.mc_tokens,

    pub fn slice(self: Tokens) []const u32 {
        return c.mc_tokens_data(self.handle)[0..c.mc_tokens_len(self.handle)];
    }

    pub fn deinit(self: Tokens) void {
        c.mc_tokens_free(self.handle);
    }
};

/// A flag that stops the calls that it was handed to, from another thread or a signal handler.
pub const Cancel = struct {
    handle: *c.mc_cancel,

    pub fn init() Cancel {
        return .{ .handle = c.mc_cancel_new().? };
    }

    pub fn trigger(self: Cancel) void {
        c.mc_cancel_trigger(self.handle);
    }

    pub fn reset(self: Cancel) void {
        c.mc_cancel_reset(self.handle);
    }

    pub fn isTriggered(self: Cancel) bool {
        return c.mc_cancel_is_triggered(self.handle);
    }

    pub fn deinit(self: Cancel) void {
        c.mc_cancel_free(self.handle);
    }
};

/// The handle of an optional wrapper.
fn raw(wrapper: anytype) ?@FieldType(@typeInfo(@TypeOf(wrapper)).optional.child, "handle") {
    return if (wrapper) |value| value.handle else null;
}

fn optionalPointer(text: ?[:0]const u8) [*c]const u8 {
    return if (text) |value| value.ptr else null;
}

// Devices

pub const DeviceKind = enum(c_uint) {
    /// The best there is: Metal or CUDA where this build and this machine have it, else the CPU.
    auto = c.MC_DEVICE_AUTO,
    cpu = c.MC_DEVICE_CPU,
    metal = c.MC_DEVICE_METAL,
    cuda = c.MC_DEVICE_CUDA,
    _,
};

/// Where arithmetic runs. Models keep theirs alive.
pub const Device = struct {
    handle: *c.mc_device,

    /// How many devices of a kind this process can open.
    pub fn count(kind_: DeviceKind) usize {
        return c.mc_device_count(@backingInt(kind_));
    }

    pub fn init(kind_: DeviceKind, index: usize) Error!Device {
        var handle: ?*c.mc_device = null;
        var failure: ?*c.mc_error = null;
        try check(c.mc_device_new(@backingInt(kind_), index, &handle, &failure), failure);
        return .{ .handle = handle.? };
    }

    pub fn deinit(self: Device) void {
        c.mc_device_free(self.handle);
    }

    pub fn kind(self: Device) DeviceKind {
        return @fromBackingInt(@intCast(c.mc_device_kind_of(self.handle)));
    }

    pub fn name(self: Device) []const u8 {
        return std.mem.span(c.mc_device_name(self.handle));
    }

    /// How many bytes of the device's memory are in use, and how many there are.
    pub fn memory(self: Device) Error!struct { used_bytes: u64, total_bytes: u64 } {
        var used: u64 = 0;
        var total: u64 = 0;
        var failure: ?*c.mc_error = null;
        try check(c.mc_device_memory(self.handle, &used, &total, &failure), failure);
        return .{ .used_bytes = used, .total_bytes = total };
    }

    /// Waits until the device has finished what it was given.
    pub fn synchronize(self: Device) Error!void {
        var failure: ?*c.mc_error = null;
        try check(c.mc_device_synchronize(self.handle, &failure), failure);
    }

    /// Closes the device for new work, and waits for what it was given; `error.Busy` says that it is not idle yet.
    pub fn @"suspend"(self: Device, timeout_ms: u32) Error!void {
        var failure: ?*c.mc_error = null;
        try check(c.mc_device_suspend(self.handle, timeout_ms, &failure), failure);
    }

    pub fn @"resume"(self: Device) void {
        c.mc_device_resume(self.handle);
    }
};

// Models

pub const DType = enum(c_uint) {
    /// As stored in the file.
    default = c.MC_DTYPE_DEFAULT,
    f32 = c.MC_DTYPE_F32,
    f16 = c.MC_DTYPE_F16,
    bf16 = c.MC_DTYPE_BF16,
    _,
};

/// What a model can be asked for.
pub const Capability = enum(c_uint) {
    generate = c.MC_CAPABILITY_GENERATE,
    embed = c.MC_CAPABILITY_EMBED,
    lora = c.MC_CAPABILITY_LORA,
    train = c.MC_CAPABILITY_TRAIN,
    chat_template = c.MC_CAPABILITY_CHAT_TEMPLATE,
    rerank = c.MC_CAPABILITY_RERANK,
    _,
};

/// How to load a model.
pub const LoadOptions = struct {
    device: ?Device = null,
    dtype: DType = .default,
    /// "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0", "iq4_nl" or "mlx4".
    quantization: ?[:0]const u8 = null,
    /// Compute in F32 with quantised weights on the CPU.
    exact: bool = false,
    /// The type of keys and values in sessions: "f32", "f16", or on the CPU "q8_0".
    kv_cache: ?[:0]const u8 = null,
    /// Tokens; 0 = as the model's configuration says.
    max_context: usize = 0,
    tokenizer_path: ?[:0]const u8 = null,
    /// The GGUF file of a directory or repository that has several.
    file: ?[:0]const u8 = null,
    hub_cache_dir: ?[:0]const u8 = null,
    hub_revision: ?[:0]const u8 = null,
    hub_token: ?[:0]const u8 = null,
    offline: bool = false,
    cancel: ?Cancel = null,
    progress: ?OnProgress = null,
    /// Options as JSON, by the names that mc_model_options_set_json() tells; they count more than those here.
    json: ?[]const u8 = null,

    fn build(self: *const LoadOptions) *c.mc_model_options {
        const options = c.mc_model_options_new().?;
        c.mc_model_options_set_device(options, raw(self.device));
        c.mc_model_options_set_dtype(options, @backingInt(self.dtype));
        c.mc_model_options_set_quantization(options, optionalPointer(self.quantization));
        c.mc_model_options_set_exact(options, self.exact);
        c.mc_model_options_set_kv_cache(options, optionalPointer(self.kv_cache));
        c.mc_model_options_set_max_context(options, self.max_context);
        c.mc_model_options_set_tokenizer_path(options, optionalPointer(self.tokenizer_path));
        c.mc_model_options_set_file(options, optionalPointer(self.file));
        c.mc_model_options_set_hub_cache_dir(options, optionalPointer(self.hub_cache_dir));
        c.mc_model_options_set_hub_revision(options, optionalPointer(self.hub_revision));
        c.mc_model_options_set_hub_token(options, optionalPointer(self.hub_token));
        c.mc_model_options_set_offline(options, self.offline);
        c.mc_model_options_set_cancel(options, raw(self.cancel));
        c.mc_model_options_set_progress(options, OnProgress.pointer(self.progress), OnProgress.userData(&self.progress));
        if (self.json) |json| c.mc_model_options_set_json(options, start(json), json.len);
        return options;
    }
};

/// A loaded model: its network, tokenizer, chat template and generation defaults. Immutable.
pub const Model = struct {
    handle: *c.mc_model,

    /// A directory with config.json, safetensors and tokenizer.json, a .gguf file, or a directory with one.
    pub fn load(path: [:0]const u8, options: LoadOptions) Error!Model {
        const built = options.build();
        defer c.mc_model_options_free(built);
        var handle: ?*c.mc_model = null;
        var failure: ?*c.mc_error = null;
        try check(c.mc_model_load(path, built, &handle, &failure), failure);
        return .{ .handle = handle.? };
    }

    /// A repository on Hugging Face, "owner/name"; what is not in the cache is downloaded.
    pub fn loadHub(repo_id: [:0]const u8, options: LoadOptions) Error!Model {
        const built = options.build();
        defer c.mc_model_options_free(built);
        var handle: ?*c.mc_model = null;
        var failure: ?*c.mc_error = null;
        try check(c.mc_model_load_hub(repo_id, built, &handle, &failure), failure);
        return .{ .handle = handle.? };
    }

    /// The bytes that a model would take: weights, the KV cache of the whole context, the workspace.
    pub fn estimateMemory(path: [:0]const u8, options: LoadOptions) Error!u64 {
        const built = options.build();
        defer c.mc_model_options_free(built);
        var bytes: u64 = 0;
        var failure: ?*c.mc_error = null;
        try check(c.mc_model_estimate_memory(path, built, &bytes, &failure), failure);
        return bytes;
    }

    pub fn deinit(self: Model) void {
        c.mc_model_free(self.handle);
    }

    /// Another reference, for a second owner; each is dropped with `deinit`.
    pub fn retain(self: Model) Model {
        c.mc_model_retain(self.handle);
        return self;
    }

    /// Writes the model as a directory in the layout of the Hub. `format`: "f32", "f16" or "bf16"; null = the bytes of the files.
    pub fn save(self: Model, directory: [:0]const u8, format: ?[:0]const u8, progress: ?OnProgress) Error!void {
        var failure: ?*c.mc_error = null;
        try check(c.mc_model_save(self.handle, directory, optionalPointer(format), OnProgress.pointer(progress), OnProgress.userData(&progress), &failure), failure);
    }

    /// Writes a model that was loaded from a GGUF file as one. `format`: what matrices become that are not quantised, such as "q8_0".
    pub fn saveGguf(self: Model, path: [:0]const u8, format: ?[:0]const u8, progress: ?OnProgress) Error!void {
        var failure: ?*c.mc_error = null;
        try check(c.mc_model_save_gguf(self.handle, path, optionalPointer(format), OnProgress.pointer(progress), OnProgress.userData(&progress), &failure), failure);
    }

    /// `model_type` of config.json, such as "qwen2".
    pub fn architecture(self: Model) []const u8 {
        return std.mem.span(c.mc_model_architecture(self.handle));
    }

    /// The longest context of a session, in tokens.
    pub fn contextLength(self: Model) usize {
        return c.mc_model_context_length(self.handle);
    }

    /// The number of logits.
    pub fn vocabSize(self: Model) usize {
        return c.mc_model_vocab_size(self.handle);
    }

    pub fn hiddenSize(self: Model) usize {
        return c.mc_model_hidden_size(self.handle);
    }

    pub fn layerCount(self: Model) usize {
        return c.mc_model_layer_count(self.handle);
    }

    pub fn parameterCount(self: Model) u64 {
        return c.mc_model_parameter_count(self.handle);
    }

    /// The type of the weights that are not quantised.
    pub fn dtype(self: Model) DType {
        return @fromBackingInt(@intCast(c.mc_model_dtype(self.handle)));
    }

    pub fn supports(self: Model, capability: Capability) bool {
        return c.mc_model_supports(self.handle, @backingInt(capability));
    }

    /// config.json as it was read, or as it follows from the metadata of a GGUF file.
    pub fn configJson(self: Model) Error!String {
        var out: ?*c.mc_string = null;
        var failure: ?*c.mc_error = null;
        try check(c.mc_model_config_json(self.handle, &out, &failure), failure);
        return .{ .handle = out.? };
    }

    /// What computes which part of the model, and how its weights are kept: see `mc_model_backend_json`.
    pub fn backendJson(self: Model) Error!String {
        var out: ?*c.mc_string = null;
        var failure: ?*c.mc_error = null;
        try check(c.mc_model_backend_json(self.handle, &out, &failure), failure);
        return .{ .handle = out.? };
    }

    /// The tokens that end an answer, the usual one first.
    pub fn eosTokens(self: Model) Error!Tokens {
        var out: ?*c.mc_tokens = null;
        var failure: ?*c.mc_error = null;
        try check(c.mc_model_eos_tokens(self.handle, &out, &failure), failure);
        return .{ .handle = out.? };
    }

    pub fn tokenizer(self: Model) Error!Tokenizer {
        var out: ?*c.mc_tokenizer = null;
        var failure: ?*c.mc_error = null;
        try check(c.mc_model_tokenizer(self.handle, &out, &failure), failure);
        return .{ .handle = out.? };
    }

    /// The prompt that a conversation becomes with the model's chat template.
    pub fn render(self: Model, chat: Chat, add_generation_prompt: bool) Error!String {
        var out: ?*c.mc_string = null;
        var failure: ?*c.mc_error = null;
        try check(c.mc_model_render_chat(self.handle, chat.handle, add_generation_prompt, &out, &failure), failure);
        return .{ .handle = out.? };
    }

    /// The same as token ids, which is how a session takes it.
    pub fn encode(self: Model, chat: Chat, add_generation_prompt: bool) Error!Tokens {
        var out: ?*c.mc_tokens = null;
        var failure: ?*c.mc_error = null;
        try check(c.mc_model_encode_chat(self.handle, chat.handle, add_generation_prompt, &out, &failure), failure);
        return .{ .handle = out.? };
    }

    /// Generates an answer to a prompt, and forgets both. A cancelled one is what there is of it.
    pub fn generate(self: Model, prompt: []const u8, options: GenerateOptions) Error!Generation {
        const built = options.build();
        defer c.mc_generate_options_free(built);
        var out: ?*c.mc_generation = null;
        var failure: ?*c.mc_error = null;
        return generated(c.mc_generate(self.handle, prompt.ptr, prompt.len, built, &out, &failure), out, failure);
    }

    /// `generate` that tells of each token. To pull tokens, use a `Session`.
    pub fn stream(self: Model, prompt: []const u8, options: GenerateOptions, on_token: OnToken) Error!Generation {
        const built = options.build();
        defer c.mc_generate_options_free(built);
        const callback: ?OnToken = on_token;
        var out: ?*c.mc_generation = null;
        var failure: ?*c.mc_error = null;
        const status = c.mc_generate_stream(self.handle, prompt.ptr, prompt.len, built, OnToken.pointer(callback), OnToken.userData(&callback), &out, &failure);
        return generated(status, out, failure);
    }

    /// How many values a vector has with these options; 0 for options that `embed` would refuse.
    pub fn embedDim(self: Model, options: EmbedOptions) usize {
        const built = options.build();
        defer c.mc_embed_options_free(built);
        return c.mc_model_embed_dim(self.handle, built);
    }

    /// How the model's vectors are meant to be compared.
    pub fn similarity(self: Model) Similarity {
        return @fromBackingInt(@intCast(c.mc_model_similarity(self.handle)));
    }

    /// Turns a text into a vector: `embedDim` values.
    pub fn embed(self: Model, text: []const u8, options: EmbedOptions, out: []f32) Error!void {
        const built = options.build();
        defer c.mc_embed_options_free(built);
        var failure: ?*c.mc_error = null;
        try check(c.mc_embed(self.handle, text.ptr, text.len, built, out.ptr, out.len, &failure), failure);
    }

    /// Turns texts into vectors, one after another: (texts, embedDim) values, owned by the caller.
    pub fn embedAll(self: Model, gpa: std.mem.Allocator, texts: []const []const u8, options: EmbedOptions) Error![]f32 {
        const built = options.build();
        defer c.mc_embed_options_free(built);
        const pointers = try gpa.alloc([*c]const u8, texts.len + 1);
        defer gpa.free(pointers);
        const lens = try gpa.alloc(usize, texts.len + 1);
        defer gpa.free(lens);
        for (texts, pointers[0..texts.len], lens[0..texts.len]) |text, *pointer, *len| {
            pointer.* = text.ptr;
            len.* = text.len;
        }
        // One value where the options are wrong, for which there is no length: the call then says what is wrong.
        const dim = @max(c.mc_model_embed_dim(self.handle, built), 1);
        const out = try gpa.alloc(f32, std.math.mul(usize, texts.len, dim) catch return error.OutOfMemory);
        errdefer gpa.free(out);
        var failure: ?*c.mc_error = null;
        try check(c.mc_embed_batch(self.handle, pointers.ptr, lens.ptr, texts.len, built, out.ptr, out.len, &failure), failure);
        return out;
    }

    /// How well each document answers the query: a score each, owned by the caller. Of a cross-encoder, or of a causal reranker such as
    /// Qwen3-Reranker.
    pub fn rerank(self: Model, gpa: std.mem.Allocator, query: []const u8, documents: []const []const u8, options: RerankOptions) Error![]f32 {
        const built = options.build();
        defer c.mc_rerank_options_free(built);
        const pointers = try gpa.alloc([*c]const u8, documents.len + 1);
        defer gpa.free(pointers);
        const lens = try gpa.alloc(usize, documents.len + 1);
        defer gpa.free(lens);
        for (documents, pointers[0..documents.len], lens[0..documents.len]) |text, *pointer, *len| {
            pointer.* = text.ptr;
            len.* = text.len;
        }
        const out = try gpa.alloc(f32, documents.len);
        errdefer gpa.free(out);
        var failure: ?*c.mc_error = null;
        try check(c.mc_rerank(self.handle, query.ptr, query.len, pointers.ptr, lens.ptr, documents.len, built, out.ptr, out.len, &failure), failure);
        return out;
    }

    /// A new model with an adapter's changes in its weights, times `scale`.
    pub fn merge(self: Model, lora: Lora, scale: f32) Error!Model {
        var out: ?*c.mc_model = null;
        var failure: ?*c.mc_error = null;
        try check(c.mc_model_merge(self.handle, lora.handle, scale, &out, &failure), failure);
        return .{ .handle = out.? };
    }
};

/// Turns text into token ids and back. Immutable.
pub const Tokenizer = struct {
    handle: *c.mc_tokenizer,

    /// A tokenizer.json, a directory with one, or a .gguf file.
    pub fn load(path: [:0]const u8) Error!Tokenizer {
        var out: ?*c.mc_tokenizer = null;
        var failure: ?*c.mc_error = null;
        try check(c.mc_tokenizer_load(path, &out, &failure), failure);
        return .{ .handle = out.? };
    }

    pub fn deinit(self: Tokenizer) void {
        c.mc_tokenizer_free(self.handle);
    }

    /// `add_special` adds what the tokenizer puts around a text.
    pub fn encode(self: Tokenizer, text: []const u8, add_special: bool) Error!Tokens {
        var out: ?*c.mc_tokens = null;
        var failure: ?*c.mc_error = null;
        try check(c.mc_tokenizer_encode(self.handle, text.ptr, text.len, add_special, &out, &failure), failure);
        return .{ .handle = out.? };
    }

    /// `skip_special` leaves special tokens out.
    pub fn decode(self: Tokenizer, tokens: []const u32, skip_special: bool) Error!String {
        var out: ?*c.mc_string = null;
        var failure: ?*c.mc_error = null;
        try check(c.mc_tokenizer_decode(self.handle, tokens.ptr, tokens.len, skip_special, &out, &failure), failure);
        return .{ .handle = out.? };
    }

    /// The id of one token, as the vocabulary spells it.
    pub fn tokenId(self: Tokenizer, token: [:0]const u8) Error!u32 {
        var id: u32 = 0;
        var failure: ?*c.mc_error = null;
        try check(c.mc_tokenizer_token_id(self.handle, token, &id, &failure), failure);
        return id;
    }

    pub fn vocabSize(self: Tokenizer) usize {
        return c.mc_tokenizer_vocab_size(self.handle);
    }

    /// Whether a token is markup such as "<|im_end|>", which is not part of a text.
    pub fn isSpecial(self: Tokenizer, token: u32) bool {
        return c.mc_tokenizer_is_special(self.handle, token);
    }

    /// The bytes that a token adds to a text in its middle: the first of them go to `out`, their number is returned.
    pub fn tokenBytes(self: Tokenizer, token: u32, out: []u8) Error!usize {
        var len: usize = 0;
        var failure: ?*c.mc_error = null;
        try check(c.mc_tokenizer_token_bytes(self.handle, token, out.ptr, out.len, &len, &failure), failure);
        return len;
    }
};

/// Token ids to text as they come: whole characters, and without special tokens.
pub const TextStream = struct {
    handle: *c.mc_text_stream,

    pub fn init(tokenizer: Tokenizer) Error!TextStream {
        var out: ?*c.mc_text_stream = null;
        var failure: ?*c.mc_error = null;
        try check(c.mc_text_stream_new(tokenizer.handle, &out, &failure), failure);
        return .{ .handle = out.? };
    }

    pub fn deinit(self: TextStream) void {
        c.mc_text_stream_free(self.handle);
    }

    /// The text that became certain with this token, which may be "".
    pub fn push(self: TextStream, token: u32) Error!String {
        var out: ?*c.mc_string = null;
        var failure: ?*c.mc_error = null;
        try check(c.mc_text_stream_push(self.handle, token, &out, &failure), failure);
        return .{ .handle = out.? };
    }

    /// What was held back; the stream is then at its beginning.
    pub fn finish(self: TextStream) Error!String {
        var out: ?*c.mc_string = null;
        var failure: ?*c.mc_error = null;
        try check(c.mc_text_stream_finish(self.handle, &out, &failure), failure);
        return .{ .handle = out.? };
    }
};

// Conversations

/// What a control token is that a message, a tool or a variable holds: a token, or text of whoever wrote it.
pub const ControlTokens = enum(c_uint) {
    tokens = c.MC_CONTROL_TOKENS,
    text = c.MC_CONTROL_TEXT,
};

/// A conversation: messages, tools, and variables of the chat template. Knows no model.
pub const Chat = struct {
    handle: *c.mc_chat,

    pub fn init() Chat {
        return .{ .handle = c.mc_chat_new().? };
    }

    /// An array of messages, or an object with `messages` and optionally `tools`.
    pub fn fromJson(json: []const u8) Error!Chat {
        var out: ?*c.mc_chat = null;
        var failure: ?*c.mc_error = null;
        try check(c.mc_chat_from_json(json.ptr, json.len, &out, &failure), failure);
        return .{ .handle = out.? };
    }

    pub fn deinit(self: Chat) void {
        c.mc_chat_free(self.handle);
    }

    /// "system", "user", "assistant", or what else the template knows.
    pub fn add(self: Chat, role: [:0]const u8, content: []const u8) Error!void {
        var failure: ?*c.mc_error = null;
        try check(c.mc_chat_add(self.handle, role, content.ptr, content.len, &failure), failure);
    }

    /// How many messages there are.
    pub fn len(self: Chat) usize {
        return c.mc_chat_len(self.handle);
    }

    pub fn removeLast(self: Chat) Error!void {
        var failure: ?*c.mc_error = null;
        try check(c.mc_chat_remove_last(self.handle, &failure), failure);
    }

    /// An object with `messages`, and with `tools` if there are any, of which `fromJson` makes an equal conversation.
    pub fn toJson(self: Chat) Error!String {
        var out: ?*c.mc_string = null;
        var failure: ?*c.mc_error = null;
        try check(c.mc_chat_json(self.handle, &out, &failure), failure);
        return .{ .handle = out.? };
    }

    /// A JSON array of tool definitions; null removes them.
    pub fn setTools(self: Chat, json: ?[]const u8) Error!void {
        var failure: ?*c.mc_error = null;
        try check(c.mc_chat_set_tools_json(self.handle, start(json), length(json), &failure), failure);
    }

    /// A Jinja template; null = the model's.
    pub fn setTemplate(self: Chat, jinja: ?[]const u8) Error!void {
        var failure: ?*c.mc_error = null;
        try check(c.mc_chat_set_template(self.handle, start(jinja), length(jinja), &failure), failure);
    }

    /// A variable of the template, a JSON value; null removes it.
    pub fn setVariable(self: Chat, name: [:0]const u8, json: ?[]const u8) Error!void {
        var failure: ?*c.mc_error = null;
        try check(c.mc_chat_set_variable_json(self.handle, name, start(json), length(json), &failure), failure);
    }

    /// Whether the last message is left open, so that the model goes on with it.
    pub fn setContinueFinalMessage(self: Chat, continues: bool) void {
        c.mc_chat_set_continue_final_message(self.handle, continues);
    }

    /// What control tokens of messages are. `render` refuses `.text`: no text means the same.
    pub fn setControlTokens(self: Chat, control_tokens: ControlTokens) Error!void {
        var failure: ?*c.mc_error = null;
        try check(c.mc_chat_set_control_tokens(self.handle, @backingInt(control_tokens), &failure), failure);
    }

    /// The clock that a template's `strftime_now` reads.
    pub fn setTime(self: Chat, unix_seconds: i64) void {
        c.mc_chat_set_time(self.handle, unix_seconds);
    }
};

fn start(text: ?[]const u8) [*c]const u8 {
    return if (text) |value| value.ptr else null;
}

fn length(text: ?[]const u8) usize {
    return if (text) |value| value.len else 0;
}

// Generation

/// Why a generation ended.
pub const FinishReason = enum(c_uint) {
    none = c.MC_FINISH_NONE,
    eos = c.MC_FINISH_EOS,
    stop_text = c.MC_FINISH_STOP_TEXT,
    max_tokens = c.MC_FINISH_MAX_TOKENS,
    context_full = c.MC_FINISH_CONTEXT_FULL,
    /// A callback stopped it, or `Answer.end` came before the end.
    callback = c.MC_FINISH_CALLBACK,
    cancelled = c.MC_FINISH_CANCELLED,
    _,
};

/// What a part of an answer is.
pub const PartKind = enum(c_uint) {
    text = c.MC_PART_TEXT,
    reasoning = c.MC_PART_REASONING,
    /// The name of a call that begins.
    tool_call = c.MC_PART_TOOL_CALL,
    /// A piece of that call's arguments, which together are a JSON object.
    arguments = c.MC_PART_ARGUMENTS,
    /// The JSON of a call that is whole, or that the answer ended within.
    tool_call_end = c.MC_PART_TOOL_CALL_END,
    /// What began as a call is none: it follows as text.
    rejected_tool_call = c.MC_PART_REJECTED_TOOL_CALL,
    _,
};

/// A part of an answer, or a piece of one; `text` is valid as long as the token's.
pub const Part = struct {
    kind: PartKind,
    text: []const u8,
    /// Which call of the answer it belongs to, from 0; 0 for text and reasoning.
    index: u32,
};

/// The parts of a token: `while (parts.next()) |part|`.
pub const Parts = struct {
    at: [*c]const c.mc_part,
    len: usize,

    pub fn next(self: *Parts) ?Part {
        if (self.len == 0) return null;
        const part: *const c.mc_part = self.at;
        self.len -= 1;
        // A later library has larger ones.
        self.at = @ptrFromInt(@intFromPtr(part) + part.struct_size);
        return .{ .kind = @fromBackingInt(@intCast(part.kind)), .text = part.text[0..part.text_len], .index = part.index };
    }
};

/// One generated token, and the text that became certain with it. `text` is valid until the next call on its session.
pub const Token = struct {
    /// Whole characters; empty while a character or a possible stop text is incomplete.
    text: []const u8,
    id: u32,
    /// Its place in the answer, from 0.
    index: u32,
    /// Natural logarithm of the probability that the model itself gave the token.
    logprob: f32,
    /// The parts that became certain with it; of an answer that is not told apart, its text.
    parts: Parts = .{ .at = null, .len = 0 },

    fn of(event: *const c.mc_token_event) Token {
        const parts: Parts = .{ .at = event.parts, .len = event.parts_len };
        return .{ .text = event.text[0..event.text_len], .id = event.token, .index = event.index, .logprob = event.logprob, .parts = parts };
    }
};

/// An adapter with a factor for its changes: 1 = as trained, 0 = the model alone.
pub const ScaledLora = struct { lora: Lora, scale: f32 = 1 };

/// Adapters as C takes them.
const LoraArrays = struct {
    handles: [64]?*const c.mc_lora = undefined,
    scales: [64]f32 = undefined,
    len: usize,

    fn init(loras: []const ScaledLora) LoraArrays {
        var arrays: LoraArrays = .{ .len = loras.len };
        for (loras[0..@min(loras.len, arrays.handles.len)], 0..) |scaled, i| {
            arrays.handles[i] = scaled.lora.handle;
            arrays.scales[i] = scaled.scale;
        }
        return arrays;
    }

    /// Null where there are too many, which the library then says.
    fn start(self: *const LoraArrays) [*c]const ?*const c.mc_lora {
        return if (self.len > self.handles.len) null else &self.handles;
    }
};

pub const LogitBias = struct { token: u32, bias: f32 };

/// How to generate; null = as the model's generation_config.json has it.
pub const GenerateOptions = struct {
    /// 0 = until the model stops or the context is full.
    max_tokens: usize = 0,
    /// 0 = always the most probable token.
    temperature: ?f64 = null,
    top_k: ?usize = null,
    top_p: ?f64 = null,
    min_p: ?f64 = null,
    repetition_penalty: ?struct { penalty: f64, last_n: usize = 0 } = null,
    frequency_penalty: f64 = 0,
    presence_penalty: f64 = 0,
    logit_bias: []const LogitBias = &.{},
    seed: ?u64 = null,
    /// Texts that end the answer where they appear.
    stop: []const []const u8 = &.{},
    /// Makes the answer a JSON text that conforms to this schema.
    json_schema: ?[]const u8 = null,
    /// How the answer is told apart, such as "hermes" or "none"; null = as the session's conversation says.
    answer_format: ?[:0]const u8 = null,
    /// "auto", "none", "required", or the name of a tool of the session's conversation.
    tool_choice: ?[:0]const u8 = null,
    /// Tokens that a thought may have.
    reasoning_budget: ?usize = null,
    ignore_eos: bool = false,
    /// Whether the prompt of `Model.generate` gets the tokenizer's special tokens.
    add_special: bool = true,
    /// 1 to 512 tokens.
    prefill_chunk: ?usize = null,
    /// An adapter for this generation, in place of the session's own.
    lora: ?ScaledLora = null,
    /// Several at once, 64 at most, in place of `lora`: their changes add up.
    loras: []const ScaledLora = &.{},
    cancel: ?Cancel = null,
    /// Not used by `Session.begin`.
    prefill_progress: ?OnProgress = null,
    /// Options as JSON, by the names that mc_generate_options_set_json() tells; they count more than those here.
    json: ?[]const u8 = null,

    fn build(self: *const GenerateOptions) *c.mc_generate_options {
        const options = c.mc_generate_options_new().?;
        c.mc_generate_options_set_max_tokens(options, self.max_tokens);
        if (self.temperature) |value| c.mc_generate_options_set_temperature(options, value);
        if (self.top_k) |value| c.mc_generate_options_set_top_k(options, value);
        if (self.top_p) |value| c.mc_generate_options_set_top_p(options, value);
        if (self.min_p) |value| c.mc_generate_options_set_min_p(options, value);
        if (self.repetition_penalty) |value| c.mc_generate_options_set_repetition_penalty(options, value.penalty, value.last_n);
        c.mc_generate_options_set_frequency_penalty(options, self.frequency_penalty);
        c.mc_generate_options_set_presence_penalty(options, self.presence_penalty);
        for (self.logit_bias) |bias| c.mc_generate_options_add_logit_bias(options, bias.token, bias.bias);
        if (self.seed) |value| c.mc_generate_options_set_seed(options, value);
        for (self.stop) |text| c.mc_generate_options_add_stop(options, text.ptr, text.len);
        c.mc_generate_options_set_json_schema(options, start(self.json_schema), length(self.json_schema));
        if (self.answer_format) |value| c.mc_generate_options_set_answer_format(options, value);
        if (self.tool_choice) |value| c.mc_generate_options_set_tool_choice(options, value);
        if (self.reasoning_budget) |value| c.mc_generate_options_set_reasoning_budget(options, value);
        c.mc_generate_options_set_ignore_eos(options, self.ignore_eos);
        c.mc_generate_options_set_add_special(options, self.add_special);
        if (self.prefill_chunk) |value| c.mc_generate_options_set_prefill_chunk(options, value);
        if (self.lora) |value| c.mc_generate_options_set_lora(options, value.lora.handle, value.scale);
        const arrays: LoraArrays = .init(self.loras);
        if (self.loras.len > 0) c.mc_generate_options_set_loras(options, arrays.start(), &arrays.scales, arrays.len);
        c.mc_generate_options_set_cancel(options, raw(self.cancel));
        c.mc_generate_options_set_prefill_progress(options, OnProgress.pointer(self.prefill_progress), OnProgress.userData(&self.prefill_progress));
        if (self.json) |json| c.mc_generate_options_set_json(options, start(json), json.len);
        return options;
    }
};

/// A finished answer, or what there is of a cancelled one.
pub const Generation = struct {
    handle: *c.mc_generation,

    pub fn deinit(self: Generation) void {
        c.mc_generation_free(self.handle);
    }

    pub fn text(self: Generation) []const u8 {
        return c.mc_generation_text(self.handle)[0..c.mc_generation_text_len(self.handle)];
    }

    /// The text without thoughts and calls of tools, where the answer was told apart.
    pub fn content(self: Generation) []const u8 {
        return c.mc_generation_content(self.handle)[0..c.mc_generation_content_len(self.handle)];
    }

    /// The model's thoughts.
    pub fn reasoning(self: Generation) []const u8 {
        return c.mc_generation_reasoning(self.handle)[0..c.mc_generation_reasoning_len(self.handle)];
    }

    /// The calls of tools, a JSON array as chat APIs have it.
    pub fn toolCallsJson(self: Generation) []const u8 {
        return c.mc_generation_tool_calls_json(self.handle)[0..c.mc_generation_tool_calls_json_len(self.handle)];
    }

    /// With the end-of-sequence token where that ended the answer.
    pub fn tokens(self: Generation) []const u32 {
        return c.mc_generation_tokens(self.handle)[0..c.mc_generation_tokens_len(self.handle)];
    }

    /// How many tokens stood before the answer.
    pub fn promptTokens(self: Generation) usize {
        return c.mc_generation_prompt_tokens(self.handle);
    }

    pub fn finishReason(self: Generation) FinishReason {
        return @fromBackingInt(@intCast(c.mc_generation_finish_reason(self.handle)));
    }

    pub fn prefillSeconds(self: Generation) f64 {
        return c.mc_generation_prefill_seconds(self.handle);
    }

    /// With the time of callbacks.
    pub fn decodeSeconds(self: Generation) f64 {
        return c.mc_generation_decode_seconds(self.handle);
    }
};

/// A cancelled generation is an answer too, if the call gives one.
fn generated(status: c.mc_status, out: ?*c.mc_generation, failure: ?*c.mc_error) Error!Generation {
    if (status == c.MC_CANCELLED) if (out) |handle| return .{ .handle = handle };
    try check(status, failure);
    return .{ .handle = out.? };
}

// Sessions

/// The tokens evaluated so far and what the network keeps of them. Holds its model.
pub const Session = struct {
    handle: *c.mc_session,

    /// `max_context` tokens at most; 0 = the model's context.
    pub fn init(model: Model, max_context: usize) Error!Session {
        var out: ?*c.mc_session = null;
        var failure: ?*c.mc_error = null;
        try check(c.mc_session_new(model.handle, max_context, &out, &failure), failure);
        return .{ .handle = out.? };
    }

    /// What `save` wrote with this model; without adapters.
    pub fn load(model: Model, path: [:0]const u8) Error!Session {
        var out: ?*c.mc_session = null;
        var failure: ?*c.mc_error = null;
        try check(c.mc_session_load(model.handle, path, &out, &failure), failure);
        return .{ .handle = out.? };
    }

    pub fn deinit(self: Session) void {
        c.mc_session_free(self.handle);
    }

    pub fn save(self: Session, path: [:0]const u8) Error!void {
        var failure: ?*c.mc_error = null;
        try check(c.mc_session_save(self.handle, path, &failure), failure);
    }

    /// A copy that goes its own way.
    pub fn fork(self: Session) Error!Session {
        var out: ?*c.mc_session = null;
        var failure: ?*c.mc_error = null;
        try check(c.mc_session_fork(self.handle, &out, &failure), failure);
        return .{ .handle = out.? };
    }

    /// The bytes that it takes now; they grow with the context.
    pub fn memory(self: Session) Error!u64 {
        var bytes: u64 = 0;
        var failure: ?*c.mc_error = null;
        try check(c.mc_session_memory(self.handle, &bytes, &failure), failure);
        return bytes;
    }

    /// How many tokens the session holds.
    pub fn position(self: Session) usize {
        return c.mc_session_position(self.handle);
    }

    /// Evaluates text behind what the session holds.
    pub fn append(self: Session, text: []const u8, cancel: ?Cancel) Error!void {
        var failure: ?*c.mc_error = null;
        try check(c.mc_session_append(self.handle, text.ptr, text.len, raw(cancel), &failure), failure);
    }

    pub fn appendTokens(self: Session, ids: []const u32, cancel: ?Cancel) Error!void {
        var failure: ?*c.mc_error = null;
        try check(c.mc_session_append_tokens(self.handle, ids.ptr, ids.len, raw(cancel), &failure), failure);
    }

    /// Makes the session hold exactly this text; what is the same is kept.
    pub fn setPrompt(self: Session, text: []const u8, cancel: ?Cancel) Error!void {
        var failure: ?*c.mc_error = null;
        try check(c.mc_session_set_prompt(self.handle, text.ptr, text.len, raw(cancel), &failure), failure);
    }

    /// Makes the session hold exactly this conversation, with its generation prompt; what is the same is kept.
    pub fn setChat(self: Session, chat: Chat, cancel: ?Cancel) Error!void {
        var failure: ?*c.mc_error = null;
        try check(c.mc_session_set_chat(self.handle, chat.handle, raw(cancel), &failure), failure);
    }

    /// Keeps the first tokens.
    pub fn truncate(self: Session, kept: usize) Error!void {
        var failure: ?*c.mc_error = null;
        try check(c.mc_session_truncate(self.handle, kept, &failure), failure);
    }

    /// Evaluates with this adapter from now on, in place of those before; null = none.
    pub fn setLora(self: Session, lora: ?Lora, scale: f32) Error!void {
        var failure: ?*c.mc_error = null;
        try check(c.mc_session_set_lora(self.handle, raw(lora), scale, &failure), failure);
    }

    /// Evaluates with several adapters at once, up to 64: their changes add up.
    pub fn setLoras(self: Session, loras: []const ScaledLora) Error!void {
        const arrays: LoraArrays = .init(loras);
        var failure: ?*c.mc_error = null;
        try check(c.mc_session_set_loras(self.handle, arrays.start(), &arrays.scales, loras.len, &failure), failure);
    }

    /// What the network says of each possible next token, unscaled: `Model.vocabSize` values.
    pub fn logits(self: Session, out: []f32) Error!void {
        var failure: ?*c.mc_error = null;
        try check(c.mc_session_logits(self.handle, out.ptr, out.len, &failure), failure);
    }

    /// The most probable next tokens, the most probable first, with the natural logarithms of their probabilities.
    pub fn topLogprobs(self: Session, top: []u32, logprobs: []f32) Error!void {
        if (logprobs.len != top.len) return invalid("logprobs: expected one value a token");
        var failure: ?*c.mc_error = null;
        try check(c.mc_session_top_logprobs(self.handle, top.len, top.ptr, logprobs.ptr, &failure), failure);
    }

    /// The tokens that the session holds.
    pub fn tokens(self: Session) Error!Tokens {
        var out: ?*c.mc_tokens = null;
        var failure: ?*c.mc_error = null;
        try check(c.mc_session_tokens(self.handle, &out, &failure), failure);
        return .{ .handle = out.? };
    }

    /// The natural logarithm of the probability of each token, one behind another; the session holds afterwards what it held.
    pub fn scoreTokens(self: Session, ids: []const u32, out: []f32, cancel: ?Cancel) Error!void {
        if (out.len != ids.len) return invalid("out: expected one value a token");
        var failure: ?*c.mc_error = null;
        try check(c.mc_session_score_tokens(self.handle, ids.ptr, ids.len, out.ptr, raw(cancel), &failure), failure);
    }

    /// Generates an answer to what the session holds, which it then holds too. A cancelled one is what there is of it.
    pub fn generate(self: Session, options: GenerateOptions, on_token: ?OnToken) Error!Generation {
        const built = options.build();
        defer c.mc_generate_options_free(built);
        var out: ?*c.mc_generation = null;
        var failure: ?*c.mc_error = null;
        const status = c.mc_session_generate_stream(self.handle, built, OnToken.pointer(on_token), OnToken.userData(&on_token), &out, &failure);
        return generated(status, out, failure);
    }

    /// Begins an answer that is read token by token. Until its end, calls that would change the session give `error.InvalidArgument`.
    pub fn begin(self: Session, options: GenerateOptions) Error!Answer {
        if (options.prefill_progress != null) return invalid("prefill_progress: expected none for an answer that is read token by token");
        const built = options.build();
        defer c.mc_generate_options_free(built);
        var failure: ?*c.mc_error = null;
        try check(c.mc_session_begin(self.handle, built, &failure), failure);
        return .{ .session = self };
    }
};

/// An answer that is read token by token, an iterator:
///
/// ```zig
/// var answer = try session.begin(.{});
/// defer answer.deinit();
/// while (try answer.next()) |token| std.debug.print("{s}", .{token.text});
/// ```
pub const Answer = struct {
    session: Session,
    ended: bool = false,

    /// null when the answer is complete or cancelled. After an error the answer is where it was, and `next` goes on with it.
    pub fn next(self: *Answer) Error!?Token {
        var event: [*c]const c.mc_token_event = null;
        var failure: ?*c.mc_error = null;
        const status = c.mc_session_next(self.session.handle, &event, &failure);
        if (status == c.MC_DONE or status == c.MC_CANCELLED) return null;
        try check(status, failure);
        return Token.of(event);
    }

    /// Ends the answer, complete or not, and gives what there is.
    pub fn end(self: *Answer) Error!Generation {
        var out: ?*c.mc_generation = null;
        var failure: ?*c.mc_error = null;
        const status = c.mc_session_end(self.session.handle, &out, &failure);
        if (status < 16) self.ended = true;
        return generated(status, out, failure);
    }

    /// Ends the answer, if `end` did not.
    pub fn deinit(self: *Answer) void {
        if (self.ended) return;
        var failure: ?*c.mc_error = null;
        // It fails where another call has given the answer up: there is then nothing to end.
        _ = c.mc_session_end(self.session.handle, null, &failure);
        c.mc_error_free(failure);
        self.ended = true;
    }
};

/// What `nextAll` gives of one answer: as `Answer.next`.
pub const Next = Error!?Token;

/// The next token of several answers in one pass: few at once take little longer than one. The sessions are of one model, up to 1024, none
/// twice. The error is of the call as a whole, with nothing done.
pub fn nextAll(gpa: std.mem.Allocator, answers: []const *Answer, results: []Next) Error!void {
    if (results.len != answers.len) return invalid("results: expected one an answer");
    const handles = try gpa.alloc(?*c.mc_session, answers.len + 1);
    defer gpa.free(handles);
    const events = try gpa.alloc([*c]const c.mc_token_event, answers.len + 1);
    defer gpa.free(events);
    const statuses = try gpa.alloc(c.mc_status, answers.len + 1);
    defer gpa.free(statuses);
    for (answers, 0..) |answer, i| handles[i] = answer.session.handle;
    var failure: ?*c.mc_error = null;
    const whole = c.mc_sessions_next(handles.ptr, answers.len, events.ptr, statuses.ptr, &failure);
    // An argument of the call itself leaves no statuses behind.
    const told = answers.len >= 1 and answers.len <= 1024;
    const same = !told or std.mem.allEqual(c.mc_status, statuses[0..answers.len], statuses[0]);
    if (whole >= 16 and same) return check(whole, failure);
    c.mc_error_free(failure);
    for (results, statuses[0..answers.len], events[0..answers.len]) |*result, status, event| {
        result.* = switch (status) {
            c.MC_OK => Token.of(event),
            c.MC_DONE, c.MC_CANCELLED => @as(?Token, null),
            else => errorOf(status),
        };
    }
}

// Embeddings

/// How the vectors of a text's tokens become one.
pub const Pooling = enum(c_uint) {
    /// What the model's directory says.
    default = c.MC_POOLING_DEFAULT,
    mean = c.MC_POOLING_MEAN,
    cls = c.MC_POOLING_CLS,
    last = c.MC_POOLING_LAST,
    max = c.MC_POOLING_MAX,
    mean_sqrt_len = c.MC_POOLING_MEAN_SQRT_LEN,
    weighted_mean = c.MC_POOLING_WEIGHTED_MEAN,
    _,
};

/// How to embed; null = as the model's directory says.
pub const EmbedOptions = struct {
    pooling: Pooling = .default,
    normalize: ?bool = null,
    /// The first values of each vector only (Matryoshka); 0 = all.
    dimensions: usize = 0,
    /// Tokens of a text that count; 0 = the model's own limit.
    max_length: usize = 0,
    batch_size: usize = 0,
    /// What stands in front of every text: the model's own prompt of this name, or this text.
    prompt: union(enum) { default, name: [:0]const u8, prefix: [:0]const u8 } = .default,
    lora: ?ScaledLora = null,
    /// Several at once, 64 at most, in place of `lora`: their changes add up.
    loras: []const ScaledLora = &.{},
    cancel: ?Cancel = null,
    progress: ?OnProgress = null,
    /// Options as JSON, by the names that mc_embed_options_set_json() tells; they count more than those here.
    json: ?[]const u8 = null,

    fn build(self: *const EmbedOptions) *c.mc_embed_options {
        const options = c.mc_embed_options_new().?;
        c.mc_embed_options_set_pooling(options, @backingInt(self.pooling));
        if (self.normalize) |value| c.mc_embed_options_set_normalize(options, value);
        c.mc_embed_options_set_dimensions(options, self.dimensions);
        c.mc_embed_options_set_max_length(options, self.max_length);
        c.mc_embed_options_set_batch_size(options, self.batch_size);
        switch (self.prompt) {
            .default => {},
            .name => |name| c.mc_embed_options_set_prompt_name(options, name),
            .prefix => |prefix| c.mc_embed_options_set_prefix(options, prefix),
        }
        if (self.lora) |value| c.mc_embed_options_set_lora(options, value.lora.handle, value.scale);
        const arrays: LoraArrays = .init(self.loras);
        if (self.loras.len > 0) c.mc_embed_options_set_loras(options, arrays.start(), &arrays.scales, arrays.len);
        c.mc_embed_options_set_cancel(options, raw(self.cancel));
        c.mc_embed_options_set_progress(options, OnProgress.pointer(self.progress), OnProgress.userData(&self.progress));
        if (self.json) |json| c.mc_embed_options_set_json(options, start(json), json.len);
        return options;
    }
};

/// What becomes of a logit of a reranker; either way more is better.
pub const ScoreActivation = enum(c_uint) {
    /// What the model's files say, else the sigmoid.
    default = c.MC_SCORE_ACTIVATION_DEFAULT,
    identity = c.MC_SCORE_ACTIVATION_IDENTITY,
    /// A number from 0 to 1.
    sigmoid = c.MC_SCORE_ACTIVATION_SIGMOID,
    _,
};

/// How to rerank.
pub const RerankOptions = struct {
    activation: ScoreActivation = .default,
    /// Tokens of a query and a document that count; 0 = the model's own limit.
    max_length: usize = 0,
    batch_size: usize = 0,
    /// In front of the query, or as the system message: the model's own prompt of this name, or this text.
    prompt: union(enum) { default, name: [:0]const u8, text: [:0]const u8 } = .default,
    cancel: ?Cancel = null,
    /// Options as JSON, by the names that mc_rerank_options_set_json() tells; they count more than those here.
    json: ?[]const u8 = null,

    fn build(self: *const RerankOptions) *c.mc_rerank_options {
        const options = c.mc_rerank_options_new().?;
        c.mc_rerank_options_set_activation(options, @backingInt(self.activation));
        c.mc_rerank_options_set_max_length(options, self.max_length);
        c.mc_rerank_options_set_batch_size(options, self.batch_size);
        switch (self.prompt) {
            .default => {},
            .name => |name| c.mc_rerank_options_set_prompt_name(options, name),
            .text => |text| c.mc_rerank_options_set_prompt(options, text),
        }
        c.mc_rerank_options_set_cancel(options, raw(self.cancel));
        if (self.json) |json| c.mc_rerank_options_set_json(options, start(json), json.len);
        return options;
    }
};

/// How vectors are compared; more is nearer.
pub const Similarity = enum(c_uint) {
    none = c.MC_SIMILARITY_NONE,
    cosine = c.MC_SIMILARITY_COSINE,
    dot = c.MC_SIMILARITY_DOT,
    euclidean = c.MC_SIMILARITY_EUCLIDEAN,
    manhattan = c.MC_SIMILARITY_MANHATTAN,
    _,

    /// For each query of `dim` values the `k` nearest documents, the nearest first: (queries, k) indices and scores.
    pub fn topK(self: Similarity, queries: []const f32, documents: []const f32, dim: usize, k: usize, indices: []usize, scores: []f32) Error!void {
        if (dim == 0 or queries.len % dim != 0 or documents.len % dim != 0) return invalid("dim: expected the values of a vector, whole vectors of which are given");
        const n = queries.len / dim;
        if (k == 0 or k > documents.len / dim) return invalid("k: expected 1 to the number of documents");
        if (indices.len / k != n or indices.len % k != 0 or scores.len != indices.len) return invalid("indices, scores: expected (queries, k)");
        var failure: ?*c.mc_error = null;
        try check(c.mc_similarity_top_k(@backingInt(self), queries.ptr, n, documents.ptr, documents.len / dim, dim, k, indices.ptr, scores.ptr, &failure), failure);
    }
};

// Adapters

/// A LoRA adapter of one model, loaded or trained. Immutable.
pub const Lora = struct {
    handle: *c.mc_lora,

    /// A directory of PEFT.
    pub fn load(model: Model, peft_dir: [:0]const u8) Error!Lora {
        var out: ?*c.mc_lora = null;
        var failure: ?*c.mc_error = null;
        try check(c.mc_lora_load(model.handle, peft_dir, &out, &failure), failure);
        return .{ .handle = out.? };
    }

    pub fn deinit(self: Lora) void {
        c.mc_lora_free(self.handle);
    }

    /// Another reference, for a second owner; each is dropped with `deinit`.
    pub fn retain(self: Lora) Lora {
        c.mc_lora_retain(self.handle);
        return self;
    }

    pub fn save(self: Lora, peft_dir: [:0]const u8) Error!void {
        var failure: ?*c.mc_error = null;
        try check(c.mc_lora_save(self.handle, peft_dir, &failure), failure);
    }

    pub fn rank(self: Lora) usize {
        return c.mc_lora_rank(self.handle);
    }

    pub fn alpha(self: Lora) f32 {
        return c.mc_lora_alpha(self.handle);
    }

    pub fn parameterCount(self: Lora) u64 {
        return c.mc_lora_parameter_count(self.handle);
    }

    /// adapter_config.json as it was read.
    pub fn configJson(self: Lora) Error!String {
        var out: ?*c.mc_string = null;
        var failure: ?*c.mc_error = null;
        try check(c.mc_lora_config_json(self.handle, &out, &failure), failure);
        return .{ .handle = out.? };
    }
};

// Training

/// Examples to train on, in their order. Knows no model.
pub const Dataset = struct {
    handle: *c.mc_dataset,

    pub fn init() Dataset {
        return .{ .handle = c.mc_dataset_new().? };
    }

    /// A file of JSON lines: `messages` and optionally `tools`, `prompt` and `completion`, or `text`.
    pub fn loadJsonl(path: [:0]const u8) Error!Dataset {
        var out: ?*c.mc_dataset = null;
        var failure: ?*c.mc_error = null;
        try check(c.mc_dataset_load_jsonl(path, &out, &failure), failure);
        return .{ .handle = out.? };
    }

    pub fn deinit(self: Dataset) void {
        c.mc_dataset_free(self.handle);
    }

    pub fn addText(self: Dataset, text: []const u8) Error!void {
        var failure: ?*c.mc_error = null;
        try check(c.mc_dataset_add_text(self.handle, text.ptr, text.len, &failure), failure);
    }

    pub fn addCompletion(self: Dataset, prompt: []const u8, completion: []const u8) Error!void {
        var failure: ?*c.mc_error = null;
        try check(c.mc_dataset_add_completion(self.handle, prompt.ptr, prompt.len, completion.ptr, completion.len, &failure), failure);
    }

    pub fn addChat(self: Dataset, chat: Chat) Error!void {
        var failure: ?*c.mc_error = null;
        try check(c.mc_dataset_add_chat(self.handle, chat.handle, &failure), failure);
    }

    pub fn len(self: Dataset) usize {
        return c.mc_dataset_len(self.handle);
    }
};

/// The adapter that is to be trained.
pub const LoraConfig = struct {
    rank: usize = 8,
    alpha: f64 = 16,
    dropout: f64 = 0,
    rslora: bool = false,
    seed: u64 = 0,
    /// As PEFT names them: "q_proj", "layers.0.mlp.up_proj"; none = every matrix of the layers.
    targets: []const [:0]const u8 = &.{},
    /// An adapter to go on with; its rank, alpha and targets are taken.
    initial: ?Lora = null,
    /// Options as JSON, by the names that mc_lora_config_set_json() tells; they count more than those here.
    json: ?[]const u8 = null,

    fn build(self: *const LoraConfig) *c.mc_lora_config {
        const config = c.mc_lora_config_new().?;
        c.mc_lora_config_set_rank(config, self.rank);
        c.mc_lora_config_set_alpha(config, self.alpha);
        c.mc_lora_config_set_dropout(config, self.dropout);
        c.mc_lora_config_set_rslora(config, self.rslora);
        c.mc_lora_config_set_seed(config, self.seed);
        for (self.targets) |target| c.mc_lora_config_add_target(config, target);
        c.mc_lora_config_set_initial(config, raw(self.initial));
        if (self.json) |json| c.mc_lora_config_set_json(config, start(json), json.len);
        return config;
    }
};

/// What the micro-batches of a step count.
pub const Weighting = enum(c_uint) { micro_batches = c.MC_WEIGHTING_MICRO_BATCHES, tokens = c.MC_WEIGHTING_TOKENS, _ };

/// What the learning rate does behind the warm-up.
pub const Schedule = enum(c_uint) { constant = c.MC_SCHEDULE_CONSTANT, linear = c.MC_SCHEDULE_LINEAR, cosine = c.MC_SCHEDULE_COSINE, _ };

/// How to train.
pub const TrainOptions = struct {
    learning_rate: f64 = 2e-4,
    weight_decay: f64 = 0.01,
    beta1: f64 = 0.9,
    beta2: f64 = 0.999,
    epsilon: f64 = 1e-8,
    /// Where checkpoints are written; null = nowhere.
    checkpoint_dir: ?[:0]const u8 = null,
    /// 0 = one at the end alone.
    checkpoint_every: u64 = 0,
    /// 0 = at the end alone.
    eval_every: u64 = 0,
    /// Evaluations in a row without a new lowest loss; 0 = any number.
    patience: u64 = 0,
    gradient_checkpointing: bool = true,
    /// 0 = gradients as they are.
    grad_clip: f64 = 1,
    grad_accumulation: usize = 1,
    weighting: Weighting = .micro_batches,
    schedule: Schedule = .constant,
    warmup_steps: u64 = 0,
    /// The step that `Trainer.train` ends with at the latest, whatever the schedule; 0 = none.
    max_steps: u64 = 0,
    /// Where the schedule ends, and with it `Trainer.train`; 0 = with the last epoch.
    total_steps: u64 = 0,
    warmup_from_zero: bool = false,
    batch_size: usize = 4,
    epochs: usize = 1,
    /// 0 = the model's context, but at most 2048 tokens.
    max_length: usize = 0,
    mask_prompt: bool = true,
    seed: u64 = 0,
    /// Stops every call on a trainer with these options.
    cancel: ?Cancel = null,
    /// Options as JSON, by the names that mc_train_options_set_json() tells; they count more than those here.
    json: ?[]const u8 = null,

    fn build(self: *const TrainOptions) *c.mc_train_options {
        const options = c.mc_train_options_new().?;
        c.mc_train_options_set_learning_rate(options, self.learning_rate);
        c.mc_train_options_set_weight_decay(options, self.weight_decay);
        c.mc_train_options_set_adam_betas(options, self.beta1, self.beta2);
        c.mc_train_options_set_adam_epsilon(options, self.epsilon);
        c.mc_train_options_set_checkpoint(options, optionalPointer(self.checkpoint_dir), self.checkpoint_every);
        c.mc_train_options_set_eval_every(options, self.eval_every);
        c.mc_train_options_set_patience(options, self.patience);
        c.mc_train_options_set_gradient_checkpointing(options, self.gradient_checkpointing);
        c.mc_train_options_set_grad_clip(options, self.grad_clip);
        c.mc_train_options_set_grad_accumulation(options, self.grad_accumulation);
        c.mc_train_options_set_weighting(options, @backingInt(self.weighting));
        c.mc_train_options_set_schedule(options, @backingInt(self.schedule), self.warmup_steps, self.total_steps);
        c.mc_train_options_set_max_steps(options, self.max_steps);
        c.mc_train_options_set_warmup_from_zero(options, self.warmup_from_zero);
        c.mc_train_options_set_batch_size(options, self.batch_size);
        c.mc_train_options_set_epochs(options, self.epochs);
        c.mc_train_options_set_max_length(options, self.max_length);
        c.mc_train_options_set_mask_prompt(options, self.mask_prompt);
        c.mc_train_options_set_seed(options, self.seed);
        c.mc_train_options_set_cancel(options, raw(self.cancel));
        if (self.json) |json| c.mc_train_options_set_json(options, start(json), json.len);
        return options;
    }
};

/// One finished step of a training.
pub const TrainStep = struct {
    /// From 1.
    step: u64,
    total_steps: u64,
    /// From 1.
    epoch: u32,
    /// Mean cross entropy of the step's target tokens, in nats, before the step.
    loss: f32,
    /// null where the evaluation dataset was not evaluated.
    eval_loss: ?f32,
    learning_rate: f64,
    grad_norm: f32,
    tokens_per_second: f32,
    target_tokens: u64,
    /// The most memory that the process has had so far; 0 where the system does not tell.
    peak_bytes: u64,
    truncated: u64,
    skipped: u64,
    is_best: bool,

    fn of(event: *const c.mc_train_event) TrainStep {
        return .{
            .step = event.step,
            .total_steps = event.total_steps,
            .epoch = event.epoch,
            .loss = event.loss,
            .eval_loss = if (std.math.isNan(event.eval_loss)) null else event.eval_loss,
            .learning_rate = event.learning_rate,
            .grad_norm = event.grad_norm,
            .tokens_per_second = event.tokens_per_second,
            .target_tokens = event.target_tokens,
            .peak_bytes = event.peak_bytes,
            .truncated = event.truncated,
            .skipped = event.skipped,
            .is_best = event.is_best,
        };
    }
};

/// A micro-batch of tokens: sequence `i` is `tokens[offsets[i]..offsets[i + 1]]`.
pub const Batch = struct {
    tokens: []const u32,
    offsets: []const usize,
    /// Whether each token is a target; null = every one but the first of a sequence.
    loss_mask: ?[]const u8 = null,

    fn check(self: Batch) Error!void {
        if (self.offsets.len < 2 or self.offsets[self.offsets.len - 1] != self.tokens.len) return invalid("offsets: expected the last one to be the number of tokens");
        if (self.loss_mask) |mask| if (mask.len != self.tokens.len) return invalid("loss_mask: expected one byte a token");
    }
};

/// An adapter in training. Holds its model.
pub const Trainer = struct {
    handle: *c.mc_lora_trainer,

    pub fn init(model: Model, config: LoraConfig, options: TrainOptions) Error!Trainer {
        const lora = config.build();
        defer c.mc_lora_config_free(lora);
        const built = options.build();
        defer c.mc_train_options_free(built);
        var out: ?*c.mc_lora_trainer = null;
        var failure: ?*c.mc_error = null;
        try check(c.mc_lora_trainer_new(model.handle, lora, built, &out, &failure), failure);
        return .{ .handle = out.? };
    }

    /// Goes on where a checkpoint has left off; null = with its own options.
    pub fn @"resume"(model: Model, checkpoint_dir: [:0]const u8, options: ?TrainOptions) Error!Trainer {
        const built = if (options) |*given| given.build() else null;
        defer c.mc_train_options_free(built);
        var out: ?*c.mc_lora_trainer = null;
        var failure: ?*c.mc_error = null;
        try check(c.mc_lora_trainer_resume(model.handle, checkpoint_dir, built, &out, &failure), failure);
        return .{ .handle = out.? };
    }

    /// The bytes that a trainer takes beside its model, at most.
    pub fn estimateMemory(model: Model, config: LoraConfig, options: TrainOptions) Error!u64 {
        const lora = config.build();
        defer c.mc_lora_config_free(lora);
        const built = options.build();
        defer c.mc_train_options_free(built);
        var bytes: u64 = 0;
        var failure: ?*c.mc_error = null;
        try check(c.mc_model_estimate_training_memory(model.handle, lora, built, &bytes, &failure), failure);
        return bytes;
    }

    pub fn deinit(self: Trainer) void {
        c.mc_lora_trainer_free(self.handle);
    }

    /// Trains until the last epoch, `total_steps` or `patience` ends it, or `on_step` stops it; another call then goes on there.
    pub fn train(self: Trainer, data: Dataset, eval: ?Dataset, on_step: ?OnStep) Error!void {
        var failure: ?*c.mc_error = null;
        try check(c.mc_lora_trainer_train(self.handle, data.handle, raw(eval), OnStep.pointer(on_step), OnStep.userData(&on_step), &failure), failure);
    }

    /// Learns from one micro-batch; the mean cross entropy of its targets, in nats, before it changed anything.
    pub fn trainBatch(self: Trainer, batch: Batch) Error!f32 {
        try batch.check();
        var loss: f32 = 0;
        var failure: ?*c.mc_error = null;
        try check(c.mc_lora_trainer_train_step(self.handle, batch.tokens.ptr, start(batch.loss_mask), batch.offsets.ptr, batch.offsets.len - 1, &loss, &failure), failure);
        return loss;
    }

    /// The loss of one micro-batch with the weights as they are.
    pub fn evalBatch(self: Trainer, batch: Batch) Error!f32 {
        try batch.check();
        var loss: f32 = 0;
        var failure: ?*c.mc_error = null;
        try check(c.mc_lora_trainer_eval_step(self.handle, batch.tokens.ptr, start(batch.loss_mask), batch.offsets.ptr, batch.offsets.len - 1, &loss, &failure), failure);
        return loss;
    }

    pub fn stepCount(self: Trainer) u64 {
        return c.mc_lora_trainer_step_count(self.handle);
    }

    /// What the last step of the optimizer did: whether `trainBatch` made one shows in `step`, which is 0 before the first.
    pub fn lastUpdate(self: Trainer) Error!struct { step: u64, learning_rate: f64, grad_norm: f32 } {
        var step: u64 = 0;
        var learning_rate: f64 = 0;
        var grad_norm: f32 = 0;
        var failure: ?*c.mc_error = null;
        try check(c.mc_lora_trainer_last_update(self.handle, &step, &learning_rate, &grad_norm, &failure), failure);
        return .{ .step = step, .learning_rate = learning_rate, .grad_norm = grad_norm };
    }

    /// The adapter as it is now, a copy.
    pub fn adapter(self: Trainer) Error!Lora {
        var out: ?*c.mc_lora = null;
        var failure: ?*c.mc_error = null;
        try check(c.mc_lora_trainer_adapter(self.handle, &out, &failure), failure);
        return .{ .handle = out.? };
    }

    /// Writes a checkpoint, which is also the adapter in PEFT's format.
    pub fn save(self: Trainer, checkpoint_dir: [:0]const u8) Error!void {
        var failure: ?*c.mc_error = null;
        try check(c.mc_lora_trainer_save(self.handle, checkpoint_dir, &failure), failure);
    }
};
