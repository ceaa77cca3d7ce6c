import CMetalCandle
import Foundation

/// A model that reads a query together with each document and tells how well the document answers it: slower than comparing the
/// vectors of an ``EmbeddingModel``, and closer to what was meant.
///
/// ```swift
/// let model = try await RerankingModel.load(from: directory)
/// let lines = ["Appends an element to a vector.", "Opens a file."]
/// for match in try await model.rank(lines, for: "How do I add to a Vec?") { print(match.score, lines[match.index]) }
/// ```
public final class RerankingModel: Sendable {
    /// A document and how well it answers.
    public struct Match: Sendable, Hashable {
        /// Its place among the documents.
        public let index: Int
        /// More is better.
        public let score: Float
    }

    /// What the model is.
    public var info: ModelInfo { native.info }

    let native: NativeModel

    init(_ native: NativeModel) { self.native = native }

    /// Loads a cross-encoder or a causal reranker from a directory. This never touches the network.
    ///
    /// - Parameters:
    ///   - directory: in the layout of the Hub or of sentence-transformers.
    ///   - options: how to load it.
    ///   - progress: hears how far it is, on another thread: never falling, 1 at the end.
    /// - Throws: as ``LanguageModel/load(from:options:progress:)``.
    public static func load(
        from directory: URL, options: ModelOptions = ModelOptions(), progress: (@Sendable (LoadProgress) -> Void)? = nil
    ) async throws -> RerankingModel {
        RerankingModel(try await .load(.directory(directory), options, start: 0, progress: progress))
    }

    /// Loads a model that an app's own downloader brings first, as ``LanguageModel/load(_:revision:using:options:progress:)``.
    public static func load(
        _ id: String, revision: String = "main", using downloader: some ModelDownloader, options: ModelOptions = ModelOptions(),
        progress: (@Sendable (LoadProgress) -> Void)? = nil
    ) async throws -> RerankingModel {
        RerankingModel(try await .load(id, revision: revision, using: downloader, options, progress: progress))
    }

    /// Loads a model of the Hugging Face Hub, as ``LanguageModel/load(hub:options:progress:)``.
    public static func load(
        hub model: HubModel, options: ModelOptions = ModelOptions(), progress: (@Sendable (LoadProgress) -> Void)? = nil
    ) async throws -> RerankingModel {
        RerankingModel(try await .load(.hub(model), options, start: LoadReporter.downloadShare, progress: progress))
    }

    /// Gives the model's memory back. Later calls throw ``MetalCandleError`` with `.invalidArgument`.
    public func unload() { native.unload() }

    /// Whether ``unload()`` was not called.
    public var isLoaded: Bool { native.isLoaded }

    /// How well each document answers a query, in their order. A pair has the same score alone and in any company.
    ///
    /// - Throws: ``MetalCandleError``, with `.unsupported` for a model that is no reranker, saying why; `CancellationError`.
    public func scores(
        of documents: [String], for query: String, options: RerankingOptions = RerankingOptions()
    ) async throws -> [Float] {
        try await native.run { model, cancel in
            let native = try options.native(cancel)
            var scores = [Float](repeating: 0, count: documents.count)
            let bytes = documents.flatMap(\.utf8)
            let lengths = documents.map(\.utf8.count)
            try bytes.withUnsafeBytes { bytes in
                var next = bytes.bindMemory(to: CChar.self).baseAddress
                let starts = lengths.map { length in
                    defer { next = next.map { $0 + length } }
                    return next
                }
                try call {
                    mc_rerank(
                        model, query, query.utf8.count, starts, lengths, documents.count, native.pointer, &scores, scores.count, $0)
                }
            }
            return scores
        }
    }

    /// The documents that answer a query best, the best first; of equally good ones the earlier.
    ///
    /// - Parameters:
    ///   - documents: every one is read.
    ///   - query: what is searched for.
    ///   - count: how many to find, at most; nil = all.
    ///   - options: how to read them.
    /// - Throws: as ``scores(of:for:options:)``.
    public func rank(
        _ documents: [String], for query: String, count: Int? = nil, options: RerankingOptions = RerankingOptions()
    ) async throws -> [Match] {
        if let count { try requireNotNegative(count, "count") }
        let scores = try await scores(of: documents, for: query, options: options)
        let best = scores.enumerated().sorted { ($1.element, $0.offset) < ($0.element, $1.offset) }
        return best.prefix(count ?? scores.count).map { Match(index: $0.offset, score: $0.element) }
    }
}

/// How to rerank. What is nil is as the model's files say.
public struct RerankingOptions: Sendable {
    /// What becomes of a logit.
    public enum Activation: Sendable, Hashable {
        /// Nothing: any number.
        case identity
        /// A number from 0 to 1.
        case sigmoid
    }

    /// What becomes of each logit.
    public var activation: Activation?
    /// How many tokens of a query and a document count, at most.
    public var maximumTokens: Int?
    /// What stands in front of the query or is the system message; of a Qwen3-Reranker without a template for pairs its instruction.
    public var prompt: EmbeddingOptions.Prompt?
    /// Options as JSON, by the names that `mc_rerank_options_set_json` of the C interface tells; they count more than those here.
    public var json: String?

    /// Makes options; what is not given is as the model says.
    public init(
        activation: Activation? = nil, maximumTokens: Int? = nil, prompt: EmbeddingOptions.Prompt? = nil, json: String? = nil
    ) {
        self.activation = activation
        self.maximumTokens = maximumTokens
        self.prompt = prompt
        self.json = json
    }

    func native(_ cancel: CancelFlag) throws -> Handle {
        let handle = Handle(mc_rerank_options_new(), free: mc_rerank_options_free)
        let options = handle.pointer
        mc_rerank_options_set_cancel(options, cancel.pointer)
        switch activation {
        case .identity: mc_rerank_options_set_activation(options, .MC_SCORE_ACTIVATION_IDENTITY)
        case .sigmoid: mc_rerank_options_set_activation(options, .MC_SCORE_ACTIVATION_SIGMOID)
        case nil: break
        }
        if let maximumTokens {
            try requirePositive(maximumTokens, "maximumTokens")
            mc_rerank_options_set_max_length(options, maximumTokens)
        }
        switch prompt {
        case .named(let name):
            try requireNoNUL(name, "prompt")
            mc_rerank_options_set_prompt_name(options, name)
        case .text(let text):
            try requireNoNUL(text, "prompt")
            mc_rerank_options_set_prompt(options, text)
        case nil: break
        }
        json?.withBytes { mc_rerank_options_set_json(options, $0, $1) }
        return handle
    }
}
