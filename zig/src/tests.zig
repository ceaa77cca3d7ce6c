//! What the module does, with the models beside it: `zig build test`. The header's own contract is tested in C.
const std = @import("std");
const mc = @import("metal_candle");
const testing = std.testing;

const coder_path = "../models/tiny-coder";
const embed_path = "../models/tiny-embed";
const facts = "../examples/data/facts.jsonl";
const question = "What does `Vec::push` do?";
const pushes = "Appends an element to the back of a collection.";

const greedy: mc.GenerateOptions = .{ .temperature = 0, .max_tokens = 64 };

/// Each test begins and ends without a handle.
fn expectNothingLeft() void {
    if (mc.liveObjects() != 0) std.debug.panic("{d} handles are left", .{mc.liveObjects()});
}

fn setQuestion(session: mc.Session, text: []const u8) !void {
    const chat = mc.Chat.init();
    defer chat.deinit();
    try chat.add("user", text);
    try session.setChat(chat, null);
}

fn expectAnswer(expected: []const u8, session: mc.Session, text: []const u8) !void {
    try setQuestion(session, text);
    const answer = try session.generate(greedy, null);
    defer answer.deinit();
    try testing.expectEqualStrings(expected, answer.text());
}

/// A path in a folder that the test removes.
fn pathIn(tmp: *const testing.TmpDir, comptime name: []const u8, buffer: []u8) [:0]const u8 {
    return std.fmt.bufPrintSentinel(buffer, ".zig-cache/tmp/{s}/" ++ name, .{tmp.sub_path[0..]}, 0) catch unreachable;
}

fn expectContains(haystack: []const u8, needle: []const u8) !void {
    if (std.mem.indexOf(u8, haystack, needle) == null) {
        std.debug.print("expected \"{s}\" in \"{s}\"\n", .{ needle, haystack });
        return error.TestExpectedContains;
    }
}

// What the module leaves out: the names of ABI 1, each of a function that is bound.
const unbound = [_][]const u8{
    "mc_device_get_kind",
    "mc_model_get_dtype",
    "mc_embed_dim",
    "mc_embed_similarity",
    "mc_chat_render",
    "mc_chat_encode",
    "mc_lora_merge",
    "mc_lora_estimate_memory",
    "mc_lora_train",
    "mc_lora_train_step",
    "mc_lora_eval_step",
};

test "every function of the header is bound or left out for a reason" {
    const source = @embedFile("metal_candle.zig");
    var symbols = std.mem.tokenizeAny(u8, @embedFile("symbols"), "\n");
    var count: usize = 0;
    while (symbols.next()) |symbol| : (count += 1) {
        var buffer: [128]u8 = undefined;
        const call = try std.fmt.bufPrint(&buffer, "c.{s}(", .{symbol});
        const bound = std.mem.indexOf(u8, source, call) != null;
        const left_out = for (unbound) |name| {
            if (std.mem.eql(u8, name, symbol)) break true;
        } else false;
        if (bound == left_out) {
            std.debug.print("{s}: bound {}, left out {}\n", .{ symbol, bound, left_out });
            return error.Unbound;
        }
    }
    try testing.expect(count > 100);
}

test "every declaration compiles" {
    inline for (.{ mc, mc.Model, mc.Session, mc.Answer, mc.Trainer, mc.TextStream, mc.Lora, mc.Dataset, mc.Chat, mc.Tokenizer, mc.Device, mc.Generation, mc.Cancel, mc.Similarity }) |T| {
        testing.refAllDecls(T);
    }
}

test "errors have a message and causes" {
    defer expectNothingLeft();
    try testing.expectError(error.NotFound, mc.Model.load("nowhere", .{}));
    try expectContains(mc.message(), "nowhere");
    try expectContains(mc.details(), mc.message());
    try testing.expectError(error.Unsupported, mc.Model.load(coder_path, .{ .quantization = "q3" }));
    try expectContains(mc.message(), "q3");
}

test "the library tells its version" {
    try testing.expectEqual(@as(u32, mc.c.MC_ABI_VERSION), mc.abiVersion());
    try testing.expectEqualStrings(mc.c.MC_VERSION_STRING, mc.version());
    try testing.expectEqual(@as(u32, mc.c.MC_VERSION_NUMBER), mc.versionNumber());
    try testing.expect(!mc.hasFeature("nonsense"));
    try mc.trimMemory(0);
    try mc.setThreads(3);
    try testing.expectEqual(3, mc.threads());
    try testing.expectError(error.InvalidArgument, mc.setThreads(1025));
    try mc.setThreads(0);
}

const Log = struct {
    count: std.atomic.Value(u32) = .init(0),

    fn write(self: *Log, level: mc.LogLevel, target: []const u8, text: []const u8) void {
        if (level == .info and std.mem.startsWith(u8, target, "metal_candle") and text.len > 0) _ = self.count.fetchAdd(1, .monotonic);
    }
};

test "log messages arrive" {
    defer expectNothingLeft();
    var log: Log = .{};
    try mc.setLog(.info, &log, Log.write);
    const model = try mc.Model.load(embed_path, .{});
    model.deinit();
    try mc.removeLog();
    try testing.expect(log.count.load(.monotonic) > 0);
}

test "devices open, tell and suspend" {
    defer expectNothingLeft();
    try testing.expectEqual(1, mc.Device.count(.cpu));
    const device = try mc.Device.init(.cpu, 0);
    defer device.deinit();
    try testing.expectEqual(mc.DeviceKind.cpu, device.kind());
    try testing.expect(device.name().len > 0);
    const memory = try device.memory();
    try testing.expect(memory.used_bytes > 0 and memory.used_bytes <= memory.total_bytes);
    try device.synchronize();
    try testing.expectError(error.NotFound, mc.Device.init(.cpu, 5));

    const model = try mc.Model.load(coder_path, .{ .device = device });
    defer model.deinit();
    const session = try mc.Session.init(model, 0);
    defer session.deinit();
    try session.append("fn main", null);
    var answer = try session.begin(.{ .max_tokens = 4, .temperature = 0 });
    defer answer.deinit();
    try testing.expectEqual(0, (try answer.next()).?.index);
    try device.@"suspend"(1000);
    try testing.expectError(error.Suspended, answer.next());
    device.@"resume"();
    try testing.expectEqual(1, (try answer.next()).?.index); // the answer goes on where it was
}

const Hear = struct {
    last: ?mc.Progress = null,
    flow: mc.Flow = .go_on,

    fn hear(self: *Hear, progress: mc.Progress) mc.Flow {
        self.last = progress;
        return self.flow;
    }
};

test "loading tells its progress and stops" {
    defer expectNothingLeft();
    var hear: Hear = .{};
    const model = try mc.Model.load(coder_path, .{ .progress = .of(&hear, Hear.hear) });
    model.deinit();
    try testing.expectEqual(mc.Stage.read, hear.last.?.stage);
    try testing.expectEqual(1, hear.last.?.fraction());
    hear.flow = .stop;
    try testing.expectError(error.Cancelled, mc.Model.load(coder_path, .{ .progress = .of(&hear, Hear.hear) }));
    const cancel = mc.Cancel.init();
    defer cancel.deinit();
    cancel.trigger();
    try testing.expect(cancel.isTriggered());
    try testing.expectError(error.Cancelled, mc.Model.load(coder_path, .{ .cancel = cancel }));
    cancel.reset();
    try testing.expect(!cancel.isTriggered());
}

test "a model says what it is, and its options hold" {
    defer expectNothingLeft();
    const options: mc.LoadOptions = .{ .quantization = "q8_0", .dtype = .f32, .exact = true, .kv_cache = "q8_0", .max_context = 128, .tokenizer_path = coder_path };
    try testing.expect(try mc.Model.estimateMemory(coder_path, options) < try mc.Model.estimateMemory(coder_path, .{}));
    const model = try mc.Model.load(coder_path, options);
    defer model.deinit();
    const second = model.retain();
    second.deinit();
    try testing.expectEqual(128, model.contextLength());
    try testing.expectEqual(mc.DType.f32, model.dtype());
    try testing.expect(model.vocabSize() > 0 and model.hiddenSize() > 0 and model.layerCount() > 0 and model.parameterCount() > 0);
    try testing.expect(model.supports(.chat_template) and model.supports(.train));
    const config = try model.configJson();
    defer config.deinit();
    try expectContains(config.slice(), model.architecture());
    const backend = try model.backendJson();
    defer backend.deinit();
    try expectContains(backend.slice(), "\"single_tokens\":\"kernels\"");
    const known = try mc.architecturesJson();
    defer known.deinit();
    try expectContains(known.slice(), model.architecture());
    const ends = try model.eosTokens();
    defer ends.deinit();
    try testing.expect(ends.slice().len > 0);
    const session = try mc.Session.init(model, 0);
    defer session.deinit();
    try expectAnswer(pushes, session, question);
    try testing.expectError(error.NotFound, mc.Model.load(coder_path, .{ .file = "nothing.gguf" }));
    if (mc.hasFeature("hub")) {
        try testing.expectError(error.NotFound, mc.Model.loadHub("nobody/nothing", .{ .offline = true, .hub_cache_dir = "nowhere", .hub_revision = "main", .hub_token = "none" }));
    }
}

test "tokenizers encode and decode" {
    defer expectNothingLeft();
    const model = try mc.Model.load(coder_path, .{});
    const tokenizer = try model.tokenizer();
    defer tokenizer.deinit();
    model.deinit(); // the tokenizer outlives it
    const tokens = try tokenizer.encode("fn main() { é }", false);
    defer tokens.deinit();
    const text = try tokenizer.decode(tokens.slice(), true);
    defer text.deinit();
    try testing.expectEqualStrings("fn main() { é }", text.slice());
    const end = try tokenizer.encode("<|im_end|>", false);
    defer end.deinit();
    try testing.expectEqualSlices(u32, &.{try tokenizer.tokenId("<|im_end|>")}, end.slice());
    try testing.expect(tokenizer.vocabSize() > 0);
    try testing.expectError(error.InvalidUtf8, tokenizer.encode("a\xff", false));
    try testing.expectError(error.NotFound, tokenizer.tokenId("no such token"));
    const stream = try mc.TextStream.init(tokenizer);
    defer stream.deinit();
    var streamed: [64]u8 = undefined;
    var streamed_len: usize = 0;
    var bytes: [64]u8 = undefined;
    var bytes_len: usize = 0;
    for (tokens.slice()) |token| {
        const piece = try stream.push(token);
        defer piece.deinit();
        @memcpy(streamed[streamed_len..][0..piece.slice().len], piece.slice());
        streamed_len += piece.slice().len;
        bytes_len += try tokenizer.tokenBytes(token, bytes[bytes_len..]);
    }
    const rest = try stream.finish();
    defer rest.deinit();
    try testing.expectEqualStrings("fn main() { é }", streamed[0..streamed_len]);
    try testing.expectEqualStrings("fn main() { é }", bytes[0..bytes_len]);
    try testing.expectEqualStrings("", rest.slice());
    try testing.expect(tokenizer.isSpecial(end.slice()[0]) and !tokenizer.isSpecial(tokens.slice()[0]));
    const alone = try mc.Tokenizer.load(coder_path);
    defer alone.deinit();
    try testing.expectEqual(tokenizer.vocabSize(), alone.vocabSize());
}

test "chats render with tools, variables and a template of their own" {
    defer expectNothingLeft();
    const model = try mc.Model.load(coder_path, .{});
    defer model.deinit();
    const chat = try mc.Chat.fromJson(
        \\[{"role": "user", "content": "hi"}]
    );
    defer chat.deinit();
    try chat.add("assistant", "hello");
    try chat.setTools(
        \\[{"type": "function", "function": {"name": "clock"}}]
    );
    try chat.setVariable("mood", "\"fine\"");
    try chat.setTemplate("{{ strftime_now('%Y') }} {{ tools[0].function.name }} {{ mood }}{% for m in messages %} {{ m.role }}{% endfor %}");
    chat.setTime(981158400);
    const text = try model.render(chat, false);
    defer text.deinit();
    try testing.expectEqualStrings("2001 clock fine user assistant", text.slice());
    try chat.setTemplate("{% for m in messages %}{{ m.content }}.{% endfor %}");
    chat.setContinueFinalMessage(true);
    const open = try model.render(chat, false);
    defer open.deinit();
    try testing.expectEqualStrings("hi.hello", open.slice());
    chat.setContinueFinalMessage(false);
    try chat.setControlTokens(.text);
    const ids = try model.encode(chat, false);
    defer ids.deinit();
    try testing.expect(ids.slice().len > 0);
    try testing.expectError(error.InvalidArgument, model.render(chat, false));
    try chat.setControlTokens(.tokens);
    try chat.setTemplate(null);
    try chat.setTools(null);
    try chat.setVariable("mood", null);
    try testing.expectError(error.Format, chat.setTools("{"));
    try testing.expectError(error.Template, chat.setTemplate("{% if"));
}

const Collect = struct {
    text: [1024]u8 = undefined,
    len: usize = 0,
    stop_after: usize = std.math.maxInt(usize),

    fn add(self: *Collect, token: mc.Token) mc.Flow {
        @memcpy(self.text[self.len..][0..token.text.len], token.text);
        self.len += token.text.len;
        return if (token.index + 1 >= self.stop_after) .stop else .go_on;
    }
};

test "whole, streamed and pulled answers are the same" {
    defer expectNothingLeft();
    const model = try mc.Model.load(coder_path, .{});
    defer model.deinit();
    var hear: Hear = .{};
    const options: mc.GenerateOptions = .{
        .max_tokens = 12,
        .temperature = 0.8,
        .top_k = 20,
        .top_p = 0.9,
        .min_p = 0.01,
        .repetition_penalty = .{ .penalty = 1.1, .last_n = 16 },
        .frequency_penalty = 0.1,
        .presence_penalty = 0.1,
        .logit_bias = &.{.{ .token = 5, .bias = -std.math.inf(f32) }},
        .seed = 7,
        .ignore_eos = true,
        .prefill_chunk = 2,
        .prefill_progress = .of(&hear, Hear.hear),
    };
    const whole = try model.generate("fn main() {", options);
    defer whole.deinit();
    try testing.expectEqual(mc.FinishReason.max_tokens, whole.finishReason());
    try testing.expect(whole.tokens().len == 12 and whole.promptTokens() > 0 and whole.prefillSeconds() > 0 and whole.decodeSeconds() > 0);
    try testing.expectEqual(mc.Stage.prefill, hear.last.?.stage);

    const by_json = try model.generate("fn", .{ .max_tokens = 12, .json = "{\"max_tokens\": 2, \"ignore_eos\": true}" });
    defer by_json.deinit();
    try testing.expectEqual(2, by_json.tokens().len);
    try testing.expectError(error.InvalidArgument, model.generate("fn", .{ .json = "{\"max_tokens\": -1}" }));
    try expectContains(mc.message(), "max_tokens: expected a whole number from 0, found -1");

    var collect: Collect = .{};
    const streamed = try model.stream("fn main() {", options, .of(&collect, Collect.add));
    defer streamed.deinit();
    try testing.expectEqualStrings(whole.text(), collect.text[0..collect.len]);

    const session = try mc.Session.init(model, 0);
    defer session.deinit();
    try session.append("fn main() {", null);
    try testing.expectError(error.InvalidArgument, session.begin(options));
    var pulled_options = options;
    pulled_options.prefill_progress = null;
    var answer = try session.begin(pulled_options);
    defer answer.deinit();
    var pulled: Collect = .{};
    while (try answer.next()) |token| {
        try testing.expectEqual(whole.tokens()[token.index], token.id);
        try testing.expect(token.logprob <= 0);
        _ = pulled.add(token);
    }
    try testing.expectEqualStrings(whole.text(), pulled.text[0..pulled.len]);
    try testing.expectError(error.InvalidArgument, model.generate("x", .{ .top_p = 7 }));
    try expectContains(mc.message(), "top_p");
}

test "stops, cancels and schemas end answers, and the session stays usable" {
    defer expectNothingLeft();
    const model = try mc.Model.load(coder_path, .{});
    defer model.deinit();
    const session = try mc.Session.init(model, 0);
    defer session.deinit();
    try setQuestion(session, question);
    {
        const answer = try session.generate(.{ .temperature = 0, .stop = &.{" element"} }, null);
        defer answer.deinit();
        try testing.expectEqualStrings("Appends an", answer.text());
        try testing.expectEqual(mc.FinishReason.stop_text, answer.finishReason());
    }
    {
        const cancel = mc.Cancel.init();
        defer cancel.deinit();
        try setQuestion(session, question);
        var answer = try session.begin(.{ .ignore_eos = true, .cancel = cancel });
        defer answer.deinit();
        while (try answer.next()) |_| cancel.trigger();
        const partial = try answer.end();
        defer partial.deinit();
        try testing.expectEqual(mc.FinishReason.cancelled, partial.finishReason());
        try testing.expectEqual(1, partial.tokens().len);
        try testing.expectError(error.Cancelled, session.append("x", cancel));
    }
    {
        var collect: Collect = .{ .stop_after = 2 };
        try setQuestion(session, question);
        const answer = try session.generate(greedy, .of(&collect, Collect.add));
        defer answer.deinit();
        try testing.expectEqual(mc.FinishReason.callback, answer.finishReason());
    }
    {
        try setQuestion(session, question);
        var left = try session.begin(greedy);
        _ = try left.next();
        try testing.expectError(error.InvalidArgument, session.append("x", null)); // an answer is begun
        left.deinit();
    }
    try expectAnswer(pushes, session, question);
    const json = try model.generate("{", .{ .json_schema = "{\"enum\": [true]}", .max_tokens = 8 });
    defer json.deinit();
    try testing.expectEqualStrings("true", json.text());
    try testing.expectEqualStrings("true", json.content());
    const called = try model.generate("{", .{ .json_schema = "{\"enum\": [{\"name\": \"f\", \"parameters\": {\"a\": 1}}]}", .answer_format = "llama3", .reasoning_budget = 4, .max_tokens = 64 });
    defer called.deinit();
    try testing.expectEqualStrings("", called.content());
    try testing.expectEqualStrings("", called.reasoning());
    try testing.expect(std.mem.indexOf(u8, called.toolCallsJson(), "\"name\":\"f\"") != null);
    const chat = mc.Chat.init();
    defer chat.deinit();
    try chat.add("user", "What time is it?");
    try chat.setTools("[{\"name\": \"now\"}]");
    try session.setChat(chat, null);
    var answer = try session.begin(.{ .answer_format = "llama3", .tool_choice = "required", .max_tokens = 64 });
    defer answer.deinit();
    var kinds: [8]mc.PartKind = undefined;
    var count: usize = 0;
    while (try answer.next()) |token| {
        var parts = token.parts;
        while (parts.next()) |part| {
            if (part.kind == .tool_call) try testing.expectEqualStrings("now", part.text);
            if (count < kinds.len) kinds[count] = part.kind;
            count += 1;
        }
    }
    try testing.expectEqual(.tool_call, kinds[0]);
    try testing.expectEqual(.tool_call_end, kinds[count - 1]);
}

test "sessions fork, truncate, save, load and score" {
    defer expectNothingLeft();
    var tmp = testing.tmpDir(.{});
    defer tmp.cleanup();
    var buffer: [128]u8 = undefined;
    const path = pathIn(&tmp, "session", &buffer);
    const model = try mc.Model.load(coder_path, .{});
    defer model.deinit();
    const session = try mc.Session.init(model, 0);
    defer session.deinit();
    const tokenizer = try model.tokenizer();
    defer tokenizer.deinit();
    const tokens = try tokenizer.encode("fn main() {", true);
    defer tokens.deinit();
    try session.appendTokens(tokens.slice(), null);
    try testing.expectEqual(tokens.slice().len, session.position());
    const logits = try testing.allocator.alloc(f32, model.vocabSize());
    defer testing.allocator.free(logits);
    try session.logits(logits);
    const best: u32 = @intCast(std.mem.indexOfMax(f32, logits));
    var scores: [2]f32 = undefined;
    var top: [2]u32 = undefined;
    try session.topLogprobs(&top, &scores);
    try testing.expectEqual(best, top[0]);
    try testing.expect(scores[0] >= scores[1]);
    const held = try session.tokens();
    defer held.deinit();
    try testing.expectEqualSlices(u32, tokens.slice(), held.slice());
    try session.scoreTokens(&.{ best, 3 }, &scores, null);
    try testing.expect(scores[0] <= 0 and scores[1] <= 0);
    try testing.expectError(error.InvalidArgument, session.scoreTokens(&.{best}, &scores, null));
    try session.save(path);
    const fork = try session.fork();
    defer fork.deinit();
    const loaded = try mc.Session.load(model, path);
    defer loaded.deinit();
    const expected = try session.generate(.{ .temperature = 0, .max_tokens = 8 }, null);
    defer expected.deinit();
    try testing.expectEqual(best, expected.tokens()[0]);
    for ([_]mc.Session{ fork, loaded }) |other| {
        const answer = try other.generate(.{ .temperature = 0, .max_tokens = 8 }, null);
        defer answer.deinit();
        try testing.expectEqualStrings(expected.text(), answer.text());
    }
    try session.truncate(2);
    try session.setPrompt("fn main() {", null);
    try testing.expectEqual(tokens.slice().len, session.position());
    try testing.expectError(error.InvalidArgument, session.truncate(100000));
}

test "several sessions go on in one pass" {
    defer expectNothingLeft();
    const model = try mc.Model.load(coder_path, .{});
    defer model.deinit();
    const prompts = [_][]const u8{ "fn main", "let x =", "impl" };
    var sessions: [3]mc.Session = undefined;
    var answers: [3]mc.Answer = undefined;
    var pointers: [3]*mc.Answer = undefined;
    for (prompts, &sessions, &answers, &pointers) |prompt, *session, *answer, *pointer| {
        session.* = try mc.Session.init(model, 0);
        try session.append(prompt, null);
        answer.* = try session.begin(.{ .temperature = 0, .max_tokens = 6 });
        pointer.* = answer;
    }
    defer for (&sessions) |session| session.deinit();
    var results: [3]mc.Next = undefined;
    var going = true;
    while (going) {
        try mc.nextAll(testing.allocator, &pointers, &results);
        going = false;
        for (results) |result| {
            if (try result != null) going = true;
        }
    }
    for (prompts, &answers) |prompt, *answer| {
        const together = try answer.end();
        defer together.deinit();
        const alone = try model.generate(prompt, .{ .temperature = 0, .max_tokens = 6 });
        defer alone.deinit();
        try testing.expectEqualStrings(alone.text(), together.text());
    }
    try testing.expectError(error.InvalidArgument, mc.nextAll(testing.allocator, &.{ pointers[0], pointers[0] }, results[0..2]));
    try testing.expectError(error.InvalidArgument, mc.nextAll(testing.allocator, &.{}, results[0..0]));
}

fn answerOn(model: mc.Model, right: *std.atomic.Value(u32)) void {
    const session = mc.Session.init(model, 0) catch return;
    defer session.deinit();
    expectAnswer(pushes, session, question) catch return;
    _ = right.fetchAdd(1, .monotonic);
}

test "threads share a model" {
    defer expectNothingLeft();
    const model = try mc.Model.load(coder_path, .{});
    defer model.deinit();
    var right: std.atomic.Value(u32) = .init(0);
    var threads: [4]std.Thread = undefined;
    for (&threads) |*thread| thread.* = try std.Thread.spawn(.{}, answerOn, .{ model, &right });
    for (threads) |thread| thread.join();
    try testing.expectEqual(4, right.load(.monotonic));
}

test "documents have scores" {
    defer expectNothingLeft();
    const model = try mc.Model.load("../tests/golden/rerankers/bert", .{});
    defer model.deinit();
    const gpa = testing.allocator;
    const query = "How do I sort a list of numbers?";
    const documents = [_][]const u8{ "Sorts the numbers in place.", "", "hello" };
    const scores = try model.rerank(gpa, query, &documents, .{});
    defer gpa.free(scores);
    try testing.expectApproxEqAbs(0.630089, scores[0], 5e-5);
    try testing.expect(model.supports(.rerank));
    const logits = try model.rerank(gpa, query, &documents, .{ .activation = .identity, .batch_size = 1, .prompt = .{ .text = "" } });
    defer gpa.free(logits);
    for (scores, logits) |score, logit| try testing.expectApproxEqAbs(score, 1 / (1 + @exp(-logit)), 1e-6);
    try testing.expectError(error.InvalidArgument, model.rerank(gpa, query, &documents, .{ .prompt = .{ .name = "nobody" } }));
    try testing.expectError(error.InvalidArgument, model.rerank(gpa, query, &documents, .{ .max_length = 1 }));
    try testing.expectError(error.InvalidUtf8, model.rerank(gpa, query, &.{"\xff"}, .{}));
    const empty = try model.rerank(gpa, query, &.{}, .{});
    defer gpa.free(empty);
    try testing.expectEqual(0, empty.len);
    const embedder = try mc.Model.load(embed_path, .{});
    defer embedder.deinit();
    try testing.expectError(error.Unsupported, embedder.rerank(gpa, query, &documents, .{}));
}

test "texts become vectors, and the nearest is found" {
    defer expectNothingLeft();
    const model = try mc.Model.load(embed_path, .{});
    defer model.deinit();
    const gpa = testing.allocator;
    const dim = model.embedDim(.{});
    var hear: Hear = .{};
    const texts = [_][]const u8{ "open a file", "add an element to a vector", "", "x\x00y" };
    const vectors = try model.embedAll(gpa, &texts, .{ .progress = .of(&hear, Hear.hear) });
    defer gpa.free(vectors);
    try testing.expectEqual(4, hear.last.?.done);
    const alone = try gpa.alloc(f32, dim);
    defer gpa.free(alone);
    for (texts, 0..) |text, i| {
        try model.embed(text, .{}, alone);
        try testing.expectEqualSlices(f32, vectors[i * dim ..][0..dim], alone); // alone as in a batch, bit for bit
    }
    try model.embed("push onto a Vec", .{}, alone);
    var indices: [2]usize = undefined;
    var scores: [2]f32 = undefined;
    try model.similarity().topK(alone, vectors, dim, 2, &indices, &scores);
    try testing.expectEqual(1, indices[0]);
    try testing.expect(scores[0] >= scores[1]);
    try testing.expectError(error.InvalidArgument, model.similarity().topK(alone, vectors, dim, 5, &indices, &scores));
    const short: mc.EmbedOptions = .{ .dimensions = 8, .max_length = 16, .batch_size = 1, .pooling = .cls, .normalize = true, .prompt = .{ .prefix = "x " } };
    try testing.expectEqual(8, model.embedDim(short));
    try model.embed("a", short, alone[0..8]);
    try testing.expectError(error.InvalidArgument, model.embedAll(gpa, &texts, .{ .prompt = .{ .name = "nobody" } }));
    try testing.expectError(error.InvalidUtf8, model.embedAll(gpa, &.{"\xff"}, .{}));
    hear.flow = .stop;
    try testing.expectError(error.Cancelled, model.embedAll(gpa, &texts, .{ .progress = .of(&hear, Hear.hear) }));
    const empty = try model.embedAll(gpa, &.{}, .{});
    defer gpa.free(empty);
    try testing.expectEqual(0, empty.len);
}

const Steps = struct {
    count: u64 = 0,
    stop_at: u64 = std.math.maxInt(u64),
    trainer: mc.Trainer,
    busy: bool = false,

    fn step(self: *Steps, event: mc.TrainStep) mc.Flow {
        self.count += 1;
        self.busy = if (self.trainer.adapter()) |lora| blk: {
            lora.deinit();
            break :blk false;
        } else |err| err == error.Busy;
        return if (event.step >= self.stop_at) .stop else .go_on;
    }
};

test "training makes an adapter, stops, and resumes" {
    defer expectNothingLeft();
    var tmp = testing.tmpDir(.{});
    defer tmp.cleanup();
    var buffer: [128]u8 = undefined;
    const directory = pathIn(&tmp, "checkpoint", &buffer);
    const model = try mc.Model.load(coder_path, .{});
    defer model.deinit();
    const data = try mc.Dataset.loadJsonl(facts);
    defer data.deinit();
    const eval = mc.Dataset.init();
    defer eval.deinit();
    const chat = try mc.Chat.fromJson("[{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", \"content\": \"b\"}]");
    try testing.expectEqual(2, chat.len());
    try chat.add("user", "c");
    try chat.removeLast();
    const written = try chat.toJson();
    defer written.deinit();
    try testing.expectEqualStrings("{\"messages\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\",\"content\":\"b\"}]}", written.slice());
    defer chat.deinit();
    try eval.addText("fn main() {}");
    try eval.addCompletion("a", "b");
    try eval.addChat(chat);
    try testing.expectEqual(3, eval.len());
    const config: mc.LoraConfig = .{ .rank = 4, .alpha = 8, .dropout = 0.1, .rslora = true, .seed = 3, .targets = &.{ "q_proj", "up_proj" } };
    const options: mc.TrainOptions = .{ .learning_rate = 1e-3, .total_steps = 4, .epochs = 2, .batch_size = 2, .checkpoint_dir = directory, .checkpoint_every = 2, .eval_every = 2, .schedule = .cosine, .warmup_steps = 1, .weighting = .tokens };
    try testing.expect(try mc.Trainer.estimateMemory(model, config, options) > 0);
    const trainer = try mc.Trainer.init(model, config, options);
    defer trainer.deinit();
    var steps: Steps = .{ .trainer = trainer, .stop_at = 2 };
    try trainer.train(data, eval, .of(&steps, Steps.step));
    try testing.expectEqual(2, steps.count);
    try testing.expectEqual(2, trainer.stepCount());
    try testing.expect(steps.busy);
    const resumed = try mc.Trainer.@"resume"(model, directory, null);
    defer resumed.deinit();
    try resumed.train(data, eval, null);
    try testing.expectEqual(4, resumed.stepCount());
    try resumed.save(directory);
    const lora = try resumed.adapter();
    defer lora.deinit();
    try testing.expectEqual(4, lora.rank());
    try testing.expectEqual(8, lora.alpha());
    try testing.expect(lora.parameterCount() > 0);
    const on = try mc.Trainer.init(model, .{ .initial = lora }, .{});
    on.deinit();
}

test "micro-batches of tokens lower their loss" {
    defer expectNothingLeft();
    const model = try mc.Model.load(coder_path, .{});
    defer model.deinit();
    const trainer = try mc.Trainer.init(model, .{}, .{ .learning_rate = 1e-2 });
    defer trainer.deinit();
    const batch: mc.Batch = .{ .tokens = &.{ 5, 6, 7, 8, 9, 10, 11 }, .offsets = &.{ 0, 4, 7 } };
    const before = try trainer.evalBatch(batch);
    try testing.expectEqual(before, try trainer.trainBatch(batch));
    try testing.expect(try trainer.evalBatch(batch) < before);
    const update = try trainer.lastUpdate();
    try testing.expectEqual(1, update.step);
    try testing.expectEqual(1e-2, update.learning_rate);
    try testing.expectError(error.InvalidArgument, trainer.trainBatch(.{ .tokens = &.{ 1, 2 }, .offsets = &.{ 0, 5 } }));
    try testing.expectError(error.InvalidArgument, trainer.trainBatch(.{ .tokens = &.{ 1, 2 }, .offsets = &.{ 0, 2 }, .loss_mask = &.{1} }));
}

test "adapters attach, add up, merge, are saved and removed" {
    defer expectNothingLeft();
    var tmp = testing.tmpDir(.{});
    defer tmp.cleanup();
    var buffers: [2][128]u8 = undefined;
    const directory = pathIn(&tmp, "adapter", &buffers[0]);
    const merged_path = pathIn(&tmp, "merged", &buffers[1]);
    const bird = "What is the bird of Velmora?";
    const model = try mc.Model.load(coder_path, .{});
    defer model.deinit();
    const lora = blk: {
        const data = try mc.Dataset.loadJsonl(facts);
        defer data.deinit();
        const trainer = try mc.Trainer.init(model, .{}, .{ .learning_rate = 5e-3, .total_steps = 60, .epochs = 100 });
        defer trainer.deinit();
        try trainer.train(data, null, null);
        const trained = try trainer.adapter();
        defer trained.deinit();
        try trained.save(directory);
        break :blk try mc.Lora.load(model, directory);
    };
    defer lora.deinit();
    const config = try lora.configJson();
    defer config.deinit();
    try expectContains(config.slice(), "lora_alpha");
    const session = try mc.Session.init(model, 0);
    defer session.deinit();
    try setQuestion(session, bird);
    const plain = try session.generate(greedy, null);
    defer plain.deinit();
    try session.setLora(lora, 1);
    try setQuestion(session, bird);
    const fact = try session.generate(greedy, null);
    defer fact.deinit();
    try expectContains(fact.text(), "heron");
    try session.setLoras(&.{ .{ .lora = lora, .scale = 0.5 }, .{ .lora = lora, .scale = 0.5 } });
    try expectAnswer(fact.text(), session, bird);
    try session.setLora(null, 1);
    try expectAnswer(plain.text(), session, bird);

    const chat = mc.Chat.init();
    defer chat.deinit();
    try chat.add("user", bird);
    const prompt = try model.render(chat, true);
    defer prompt.deinit();
    const attached = try model.generate(prompt.slice(), .{ .temperature = 0, .max_tokens = 64, .add_special = false, .lora = .{ .lora = lora } });
    defer attached.deinit();
    const halves = try model.generate("a", .{ .temperature = 0, .max_tokens = 2, .loras = &.{ .{ .lora = lora, .scale = 0.5 }, .{ .lora = lora, .scale = 0.5 } } });
    defer halves.deinit();
    try testing.expect(halves.tokens().len > 0);
    const many: [65]mc.ScaledLora = @splat(.{ .lora = lora });
    try testing.expectError(error.InvalidArgument, model.generate("a", .{ .loras = &many }));
    try testing.expectEqualStrings(fact.text(), attached.text());
    const merged = try model.merge(lora, 1);
    defer merged.deinit();
    var hear: Hear = .{};
    try merged.save(merged_path, "f32", .of(&hear, Hear.hear));
    try testing.expectEqual(mc.Stage.write, hear.last.?.stage);
    const again = try mc.Model.load(merged_path, .{});
    defer again.deinit();
    const answer = try again.generate(prompt.slice(), .{ .temperature = 0, .max_tokens = 64, .add_special = false });
    defer answer.deinit();
    try testing.expectEqualStrings(fact.text(), answer.text());
    try testing.expectError(error.Unsupported, merged.saveGguf(merged_path, null, null));
    const other = try mc.Model.load(embed_path, .{});
    defer other.deinit();
    var out: [8]f32 = undefined;
    try testing.expectError(error.Mismatch, other.embed("a", .{ .dimensions = 8, .lora = .{ .lora = lora } }, &out));
}

test "GGUF files load and are saved" {
    defer expectNothingLeft();
    var tmp = testing.tmpDir(.{});
    defer tmp.cleanup();
    var buffer: [128]u8 = undefined;
    const path = pathIn(&tmp, "copy.gguf", &buffer);
    const model = try mc.Model.load("../tests/golden/gguf/qwen2-Q4_0.gguf", .{});
    defer model.deinit();
    try model.saveGguf(path, null, null);
    const again = try mc.Model.load(path, .{});
    defer again.deinit();
    try testing.expectEqual(model.parameterCount(), again.parameterCount());
}
