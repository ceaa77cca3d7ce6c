//! Five lines to the first token:
//!
//!     const model = try mc.Model.load("models/tiny-coder", .{});
//!     const session = try mc.Session.init(model, 0);
//!     try session.append("fn main() {", null);
//!     var answer = try session.begin(.{});
//!     while (try answer.next()) |token| std.debug.print("{s}", .{token.text});
//!
//! This program loads with progress, streams an answer, stops another, ranks three texts, trains an adapter for 20 steps and asks with it.
const std = @import("std");
const mc = @import("metal_candle");

/// What the program itself writes to: the callbacks' context.
const Tour = struct {
    out: *std.Io.Writer,

    fn loading(_: *Tour, progress: mc.Progress) mc.Flow {
        std.debug.print("\rloading {d:.0} %", .{100 * progress.fraction()});
        return .go_on;
    }

    fn step(_: *Tour, event: mc.TrainStep) mc.Flow {
        std.debug.print("\rstep {d}/{d}, loss {d:.3}", .{ event.step, event.total_steps, event.loss });
        return .go_on;
    }

    fn run(self: *Tour, gpa: std.mem.Allocator, model_path: [:0]const u8, embedder_path: [:0]const u8, examples: [:0]const u8) !void {
        const model = try mc.Model.load(model_path, .{ .progress = .of(self, loading) });
        defer model.deinit();
        std.debug.print("\n", .{});
        try self.ask(model, "What does `Vec::push` do?", null, null);
        try self.ask(model, "What does `Vec::push` do?", 2, null);
        try self.rank(gpa, embedder_path);
        const lora = try self.train(model, examples);
        defer lora.deinit();
        try self.ask(model, "What is the bird of Velmora?", null, lora);
    }

    /// Streams an answer; after `stop_after` tokens its flag is triggered, as another thread would.
    fn ask(self: *Tour, model: mc.Model, question: []const u8, stop_after: ?u32, lora: ?mc.Lora) !void {
        const chat = mc.Chat.init();
        defer chat.deinit();
        try chat.add("user", question);
        const session = try mc.Session.init(model, 0);
        defer session.deinit();
        try session.setLora(lora, 1);
        try session.setChat(chat, null);
        const cancel = mc.Cancel.init();
        defer cancel.deinit();
        var answer = try session.begin(.{ .temperature = 0, .max_tokens = 64, .cancel = cancel });
        defer answer.deinit();
        while (try answer.next()) |token| {
            try self.out.writeAll(token.text);
            try self.out.flush();
            if (token.index + 1 == stop_after) cancel.trigger();
        }
        const said = try answer.end();
        defer said.deinit();
        try self.out.writeAll(if (said.finishReason() == .cancelled) " [stopped]\n" else "\n");
    }

    fn rank(self: *Tour, gpa: std.mem.Allocator, path: [:0]const u8) !void {
        const embedder = try mc.Model.load(path, .{});
        defer embedder.deinit();
        const texts = [_][]const u8{ "open a file for reading", "add an element to a vector", "sleep for one second" };
        const query = try embedder.embedAll(gpa, &.{"push onto a Vec"}, .{});
        defer gpa.free(query);
        const documents = try embedder.embedAll(gpa, &texts, .{});
        defer gpa.free(documents);
        var order: [texts.len]usize = undefined;
        var scores: [texts.len]f32 = undefined;
        try embedder.similarity().topK(query, documents, query.len, texts.len, &order, &scores);
        for (order, scores) |index, score| try self.out.print("{d:.3}  {s}\n", .{ score, texts[index] });
        try self.out.flush();
    }

    fn train(self: *Tour, model: mc.Model, examples: [:0]const u8) !mc.Lora {
        const data = try mc.Dataset.loadJsonl(examples);
        defer data.deinit();
        const trainer = try mc.Trainer.init(model, .{}, .{ .learning_rate = 5e-3, .schedule = .cosine, .batch_size = 15, .epochs = 10, .total_steps = 20 });
        defer trainer.deinit();
        try trainer.train(data, null, .of(self, step));
        std.debug.print("\n", .{});
        return trainer.adapter();
    }
};

pub fn main(init: std.process.Init) !u8 {
    const args = try init.minimal.args.toSlice(init.arena.allocator());
    if (args.len != 4) {
        std.debug.print("usage: tour MODEL EMBEDDER EXAMPLES.jsonl\n", .{});
        return 2;
    }
    var buffer: [1024]u8 = undefined;
    var file: std.Io.File.Writer = .initStreaming(.stdout(), init.io, &buffer);
    var tour: Tour = .{ .out = &file.interface };
    tour.run(init.gpa, args[1], args[2], args[3]) catch |err| {
        std.debug.print("tour: {t}: {s}\n", .{ err, mc.message() });
        return 1;
    };
    return 0;
}
