//! The module `metal_candle`, over the library that `make install` left below -Dprefix, or wherever -Dinclude and -Dlib say.
const std = @import("std");

pub fn build(b: *std.Build) void {
    const target = b.standardTargetOptions(.{});
    const optimize = b.standardOptimizeOption(.{});
    const prefix = b.option([]const u8, "prefix", "where metal-candle is installed (/usr/local)") orelse "/usr/local";
    const include = b.option([]const u8, "include", "the folder of metal_candle.h (PREFIX/include)") orelse b.fmt("{s}/include", .{prefix});
    const lib = b.option([]const u8, "lib", "the folder of the library (PREFIX/lib)") orelse b.fmt("{s}/lib", .{prefix});
    const link = b.option(std.builtin.LinkMode, "link", "the shared library or the archive (dynamic)") orelse .dynamic;

    const header = b.addTranslateC(.{
        .root_source_file = .{ .cwd_relative = b.fmt("{s}/metal_candle.h", .{include}) },
        .target = target,
        .optimize = optimize,
    });
    const module = b.addModule("metal_candle", .{
        .root_source_file = b.path("src/metal_candle.zig"),
        .target = target,
        .optimize = optimize,
        .link_libc = true,
        .imports = &.{.{ .name = "c", .module = header.createModule() }},
    });
    const folder: std.Build.LazyPath = .{ .cwd_relative = lib };
    switch (link) {
        .dynamic => {
            module.addLibraryPath(folder);
            module.addRPath(folder);
            module.linkSystemLibrary("metal_candle", .{ .use_pkg_config = .no });
        },
        .static => {
            module.addObjectFile(folder.path(b, "libmetal_candle.a"));
            if (target.result.os.tag.isDarwin()) {
                for ([_][]const u8{ "Metal", "Foundation", "CoreFoundation", "Security" }) |name| module.linkFramework(name, .{});
                for ([_][]const u8{ "objc", "iconv" }) |name| module.linkSystemLibrary(name, .{});
            } else {
                module.linkSystemLibrary("unwind", .{}); // Zig's own, in place of gcc_s
            }
        },
    }

    const tests = b.addTest(.{ .root_module = b.createModule(.{
        .root_source_file = b.path("src/tests.zig"),
        .target = target,
        .optimize = optimize,
        .imports = &.{.{ .name = "metal_candle", .module = module }},
    }) });
    tests.root_module.addAnonymousImport("symbols", .{ .root_source_file = b.path("../abi/symbols.txt") });
    const run = b.addRunArtifact(tests);
    run.has_side_effects = true; // it reads the models beside this package
    run.setCwd(b.path("."));
    b.step("test", "Run the tests, with the models beside this folder").dependOn(&run.step);
}
