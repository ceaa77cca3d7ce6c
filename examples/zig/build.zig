//! zig build run [-Dprefix=/usr/local] -- MODEL EMBEDDER EXAMPLES.jsonl
const std = @import("std");

pub fn build(b: *std.Build) void {
    const target = b.standardTargetOptions(.{});
    const optimize = b.standardOptimizeOption(.{});
    const prefix = b.option([]const u8, "prefix", "where metal-candle is installed (/usr/local)") orelse "/usr/local";
    const metal_candle = b.dependency("metal_candle", .{
        .target = target,
        .optimize = optimize,
        .prefix = prefix,
        .include = b.option([]const u8, "include", "the folder of metal_candle.h (PREFIX/include)") orelse b.fmt("{s}/include", .{prefix}),
        .lib = b.option([]const u8, "lib", "the folder of the library (PREFIX/lib)") orelse b.fmt("{s}/lib", .{prefix}),
        .link = b.option(std.builtin.LinkMode, "link", "the shared library or the archive (dynamic)") orelse .dynamic,
    });
    const tour = b.addExecutable(.{ .name = "tour", .root_module = b.createModule(.{
        .root_source_file = b.path("src/main.zig"),
        .target = target,
        .optimize = optimize,
        .imports = &.{.{ .name = "metal_candle", .module = metal_candle.module("metal_candle") }},
    }) });
    b.installArtifact(tour);
    const run = b.addRunArtifact(tour);
    run.addPassthruArgs();
    b.step("run", "Load, stream, cancel, rank, train").dependOn(&run.step);
}
