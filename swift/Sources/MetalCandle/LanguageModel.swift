import CMetalCandle
import Foundation

/// A model that generates text, loaded from files.
///
/// ```swift
/// let model = try await LanguageModel.load(from: directory) { progress in
///     print(progress.phase, progress.fraction)
/// }
/// let session = ChatSession(model)
/// print(try await session.respond(to: "What does `Vec::push` do?").text)
/// ```
///
/// Any number of sessions, in any tasks, share a model. Its work runs on a thread of its own, never on those of Swift's tasks.
public final class LanguageModel: Sendable {
    /// What the model is.
    public var info: ModelInfo { native.info }

    let native: NativeModel

    init(_ native: NativeModel) throws {
        guard native.info.generatesText else {
            throw MetalCandleError(
                .unsupported, "model: expected one that generates text, found \(native.info.architecture), which only embeds")
        }
        self.native = native
    }

    /// Loads a model from a directory, or from a GGUF file. This never touches the network.
    ///
    /// - Parameters:
    ///   - directory: with `config.json`, safetensors and `tokenizer.json`, in the layout of the Hugging Face Hub; or a `.gguf` file,
    ///     of a model in several files the first.
    ///   - options: how to load it.
    ///   - progress: hears how far it is, on another thread: never falling, 1 at the end.
    /// - Throws: ``MetalCandleError``: `.notFound`, `.io` or `.format` for a file, `.unsupported` for an architecture, `.outOfMemory`;
    ///   `CancellationError`.
    public static func load(
        from directory: URL, options: ModelOptions = ModelOptions(), progress: (@Sendable (LoadProgress) -> Void)? = nil
    ) async throws -> LanguageModel {
        try LanguageModel(await .load(.directory(directory), options, start: 0, progress: progress))
    }

    /// Loads a model that an app's own downloader brings first.
    ///
    /// - Parameters:
    ///   - id: what the downloader knows the model by.
    ///   - revision: a branch, tag or commit.
    ///   - downloader: brings the files.
    ///   - options: how to load it.
    ///   - progress: as for ``load(from:options:progress:)``; the download counts four fifths.
    /// - Throws: what the downloader throws, and as ``load(from:options:progress:)``.
    public static func load(
        _ id: String, revision: String = "main", using downloader: some ModelDownloader, options: ModelOptions = ModelOptions(),
        progress: (@Sendable (LoadProgress) -> Void)? = nil
    ) async throws -> LanguageModel {
        try LanguageModel(await .load(id, revision: revision, using: downloader, options, progress: progress))
    }

    /// Loads a model of the Hugging Face Hub with the library's own client: files that are not in its cache are downloaded.
    ///
    /// - Throws: as ``load(from:options:progress:)``; `.network` if a download fails, `.notFound` if there is no such repository,
    ///   `.unsupported` in a build without the client.
    public static func load(
        hub model: HubModel, options: ModelOptions = ModelOptions(), progress: (@Sendable (LoadProgress) -> Void)? = nil
    ) async throws -> LanguageModel {
        try LanguageModel(await .load(.hub(model), options, start: LoadReporter.downloadShare, progress: progress))
    }

    /// How much memory a model would take: weights, the cache of its whole context, and workspace.
    ///
    /// - Returns: bytes.
    public static func estimatedMemoryBytes(
        of directory: URL, options: ModelOptions = ModelOptions()
    ) async throws -> UInt64 {
        try await NativeQueue("estimate").run {
            let native = try options.native()
            let path = try directory.nativePath("directory")
            var bytes: UInt64 = 0
            try call { mc_model_estimate_memory(path, native.pointer, &bytes, $0) }
            return bytes
        }
    }

    /// Does what the first answer would otherwise wait for: memory is mapped, and kernels are compiled.
    public func prewarm() async throws {
        _ = try await complete(" ", options: ResponseOptions(maximumTokens: 1))
    }

    /// Gives the memory of the model and of all its sessions back, as soon as calls that run are over. Later calls throw
    /// ``MetalCandleError`` with `.invalidArgument`; ``info`` and the sessions' histories can still be read.
    public func unload() { native.unload() }

    /// Whether ``unload()`` was not called.
    public var isLoaded: Bool { native.isLoaded }

    /// What computes which part of the model, and how its weights are kept, as JSON: see `mc_model_backend_json`.
    ///
    /// - Throws: ``MetalCandleError`` with `.invalidArgument` after ``unload()``.
    public func backendJSON() throws -> String {
        let model = try native.loaded()
        return try String(made: { mc_model_backend_json(model.pointer, $0, $1) })
    }

    /// How many tokens a text is, without those that the tokenizer puts around it.
    public func tokenCount(_ text: String) async throws -> Int {
        try await tokens(text).count
    }

    /// A text's token ids, without those that the tokenizer puts around it.
    ///
    /// - Throws: ``MetalCandleError`` with `.notFound` if the model has no tokenizer.
    public func tokens(_ text: String) async throws -> [UInt32] {
        let model = try native.loaded()
        // Not behind the answers that are being made.
        return try await Self.tokenizing.run {
            let tokenizer = try Handle(free: mc_tokenizer_free) { mc_model_tokenizer(model.pointer, $0, $1) }
            return try [UInt32](made: { out, error in
                text.withBytes { mc_tokenizer_encode(tokenizer.pointer, $0, $1, false, out, error) }
            })
        }
    }

    /// Continues a text, without a chat template.
    ///
    /// - Parameters:
    ///   - prompt: special tokens written in it become their ids.
    ///   - options: how to generate.
    /// - Throws: ``MetalCandleError``; `CancellationError`.
    public func complete(_ prompt: String, options: ResponseOptions = ResponseOptions()) async throws -> Response {
        try await streamCompletion(of: prompt, options: options).collect()
    }

    /// Continues a text, piece by piece; as ``complete(_:options:)``.
    public func streamCompletion(of prompt: String, options: ResponseOptions = ResponseOptions()) -> ResponseStream {
        ResponseStream(Turn(model: native) { [native] cancel in
            let model = try native.loaded()
            let session = try Handle(free: mc_session_free) { mc_session_new(model.pointer, 0, $0, $1) }
            if let tell = options.prefillProgress {
                let tokenizer = try Handle(free: mc_tokenizer_free) { mc_model_tokenizer(model.pointer, $0, $1) }
                let tokens = try [UInt32](made: { out, error in
                    prompt.withBytes { mc_tokenizer_encode(tokenizer.pointer, $0, $1, true, out, error) }
                })
                try PrefillProgress.prefill(session.pointer, tokens, cancel, tell: tell)
            } else {
                try call { error in
                    prompt.withBytes { mc_session_set_prompt(session.pointer, $0, $1, cancel.pointer, error) }
                }
            }
            let options = try options.native(cancel)
            try call { mc_session_begin(session.pointer, options.pointer, $0) }
            return session
        })
    }

    /// How likely the model finds given tokens behind a prompt: of each the natural logarithm of its probability, at most 0, behind the
    /// prompt and the tokens in front of it. For rankings and perplexities; all are evaluated in one pass.
    ///
    /// - Parameters:
    ///   - tokens: ids, as ``tokens(_:)`` gives them.
    ///   - prompt: special tokens written in it become their ids. Not empty.
    /// - Throws: ``MetalCandleError``; `CancellationError`.
    public func logProbabilities(of tokens: [UInt32], after prompt: String) async throws -> [Float] {
        try await native.run { model, cancel in
            let session = try Handle(free: mc_session_free) { mc_session_new(model, 0, $0, $1) }
            try call { error in
                prompt.withBytes { mc_session_set_prompt(session.pointer, $0, $1, cancel.pointer, error) }
            }
            // One more, so that there is an address where there is no token.
            var scores = [Float](repeating: 0, count: tokens.count + 1)
            try call { error in
                mc_session_score_tokens(session.pointer, tokens, tokens.count, &scores, cancel.pointer, error)
            }
            return Array(scores.dropLast())
        }
    }

    /// A new model with an adapter's changes in its weights: the adapter's results at the speed of the model alone. The two share
    /// what does not change.
    ///
    /// - Parameters:
    ///   - adapter: one that was loaded for this model.
    ///   - scale: a factor for its changes; 1 = as trained.
    /// - Throws: ``MetalCandleError`` with `.mismatch` for an adapter of another model.
    public func merging(_ adapter: Adapter, scale: Float = 1) async throws -> LanguageModel {
        let merged = try await native.run { model, _ in
            try Handle(free: mc_model_free) { mc_model_merge(model, adapter.handle.pointer, scale, $0, $1) }
        }
        return try LanguageModel(NativeModel(merged, on: NativeQueue("model")))
    }

    private static let tokenizing = NativeQueue("tokenizer")
}
