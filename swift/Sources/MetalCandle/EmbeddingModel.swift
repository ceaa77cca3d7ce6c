import CMetalCandle
import Foundation

/// A model that turns texts into vectors: texts of similar meaning have similar vectors.
///
/// ```swift
/// let model = try await EmbeddingModel.load(from: directory)
/// let lines = ["Appends an element to a vector.", "Opens a file."]
/// let documents = try await model.embed(lines)
/// let query = try await model.embed("How do I add to a Vec?")
/// let nearest = try await model.nearest(to: query, in: documents, count: 1)
/// print(lines[nearest[0].index], nearest[0].similarity)
/// ```
public final class EmbeddingModel: Sendable {
    /// How vectors are compared; more is nearer.
    public enum Similarity: Sendable, Hashable, CaseIterable {
        /// The cosine of the angle between them, -1 to 1.
        case cosine
        /// The scalar product.
        case dot
        /// Minus the Euclidean distance.
        case euclidean
        /// Minus the sum of the absolute differences.
        case manhattan
    }

    /// A vector that was found.
    public struct Match: Sendable, Hashable {
        /// Its place among those that were searched.
        public let index: Int
        /// How near it is.
        public let similarity: Float
    }

    /// What the model is.
    public var info: ModelInfo { native.info }

    let native: NativeModel

    init(_ native: NativeModel) throws {
        guard native.info.embedsText else {
            throw MetalCandleError(
                .unsupported, "model: expected one that embeds text, found \(native.info.architecture), which does not")
        }
        self.native = native
    }

    /// Loads a model from a directory, or from a GGUF file. This never touches the network.
    ///
    /// - Parameters:
    ///   - directory: in the layout of sentence-transformers, or a `.gguf` file.
    ///   - options: how to load it.
    ///   - progress: hears how far it is, on another thread: never falling, 1 at the end.
    /// - Throws: as ``LanguageModel/load(from:options:progress:)``.
    public static func load(
        from directory: URL, options: ModelOptions = ModelOptions(), progress: (@Sendable (LoadProgress) -> Void)? = nil
    ) async throws -> EmbeddingModel {
        try EmbeddingModel(await .load(.directory(directory), options, start: 0, progress: progress))
    }

    /// Loads a model that an app's own downloader brings first, as ``LanguageModel/load(_:revision:using:options:progress:)``.
    public static func load(
        _ id: String, revision: String = "main", using downloader: some ModelDownloader, options: ModelOptions = ModelOptions(),
        progress: (@Sendable (LoadProgress) -> Void)? = nil
    ) async throws -> EmbeddingModel {
        try EmbeddingModel(await .load(id, revision: revision, using: downloader, options, progress: progress))
    }

    /// Loads a model of the Hugging Face Hub, as ``LanguageModel/load(hub:options:progress:)``.
    public static func load(
        hub model: HubModel, options: ModelOptions = ModelOptions(), progress: (@Sendable (LoadProgress) -> Void)? = nil
    ) async throws -> EmbeddingModel {
        try EmbeddingModel(await .load(.hub(model), options, start: LoadReporter.downloadShare, progress: progress))
    }

    /// Gives the model's memory back. Later calls throw ``MetalCandleError`` with `.invalidArgument`.
    public func unload() { native.unload() }

    /// Whether ``unload()`` was not called.
    public var isLoaded: Bool { native.isLoaded }

    /// How the model's vectors are meant to be compared.
    public func similarity() throws -> Similarity {
        let model = try native.loaded()
        return Similarity.allCases.first { $0.native == mc_model_similarity(model.pointer) } ?? .cosine
    }

    /// Embeds a text.
    ///
    /// - Throws: ``MetalCandleError``; `CancellationError`.
    public func embed(_ text: String, options: EmbeddingOptions = EmbeddingOptions()) async throws -> [Float] {
        try await embed([text], options: options)[0]
    }

    /// Embeds many texts, in one native call: faster than one by one, and with the same vectors.
    ///
    /// - Parameters:
    ///   - texts: what to embed; the empty text has a vector too.
    ///   - options: how to embed.
    /// - Returns: a vector for each text, in their order.
    /// - Throws: ``MetalCandleError``; `CancellationError`.
    public func embed(_ texts: [String], options: EmbeddingOptions = EmbeddingOptions()) async throws -> [[Float]] {
        try await native.run { model, cancel in
            let native = try options.native(cancel)
            // 0 for options that are wrong: the call says what is wrong.
            let dimensions = mc_model_embed_dim(model, native.pointer)
            var vectors = [Float](repeating: 0, count: texts.count * dimensions)
            let bytes = texts.flatMap(\.utf8)
            let lengths = texts.map(\.utf8.count)
            try bytes.withUnsafeBytes { bytes in
                // An empty batch of bytes has no address; NULL is right for texts of length 0.
                var next = bytes.bindMemory(to: CChar.self).baseAddress
                let starts = lengths.map { length in
                    defer { next = next.map { $0 + length } }
                    return next
                }
                try call {
                    mc_embed_batch(model, starts, lengths, texts.count, native.pointer, &vectors, vectors.count, $0)
                }
            }
            return vectors.split(by: dimensions)
        }
    }

    /// The vectors that are nearest to one, as the model compares them.
    ///
    /// - Parameters:
    ///   - query: what is searched for.
    ///   - documents: what is searched; every one is compared.
    ///   - count: how many to find, at most.
    /// - Returns: the nearest first; of equally near ones the earlier.
    /// - Throws: ``MetalCandleError`` with `.invalidArgument` if the vectors are not equally long.
    public func nearest(to query: [Float], in documents: [[Float]], count: Int) async throws -> [Match] {
        if let other = documents.firstIndex(where: { $0.count != query.count }) {
            let found = documents[other].count
            throw MetalCandleError(.invalidArgument, "documents[\(other)]: expected \(query.count) values, found \(found)")
        }
        try requireNotNegative(count, "count")
        let count = min(count, documents.count)
        if count == 0 { return [] }
        let similarity = try similarity().native
        return try await native.queue.run {
            var (indices, similarities) = ([Int](repeating: 0, count: count), [Float](repeating: 0, count: count))
            try call {
                mc_similarity_top_k(
                    similarity, query, 1, documents.flatMap { $0 }, documents.count, query.count, count, &indices, &similarities, $0)
            }
            return zip(indices, similarities).map { Match(index: $0, similarity: $1) }
        }
    }

    /// How near two vectors are, as the model compares them.
    public func similarity(_ a: [Float], _ b: [Float]) async throws -> Float {
        try await nearest(to: a, in: [b], count: 1)[0].similarity
    }
}

/// How to embed. What is nil is as the model's files say.
public struct EmbeddingOptions: Sendable {
    /// How the vectors of a text's tokens become one.
    public enum Pooling: Sendable, Hashable {
        /// Their mean.
        case mean
        /// The first one.
        case first
        /// The last one.
        case last
        /// The largest value of each dimension.
        case maximum
        /// Their sum over the square root of their number.
        case meanOverSquareRoot
        /// Their mean, weighted with the position.
        case weightedMean
    }

    /// What stands in front of every text.
    public enum Prompt: Sendable, Hashable {
        /// One of the model's own, such as `query` or `document`.
        case named(String)
        /// This text; empty = nothing, not even the model's default.
        case text(String)
    }

    /// How the vectors of a text's tokens become one.
    public var pooling: Pooling?
    /// Whether vectors have length 1.
    public var normalizes: Bool?
    /// Keeps the first values of each vector only, for models that were trained for it (Matryoshka).
    public var dimensions: Int?
    /// How many tokens of a text count, at most.
    public var maximumTokens: Int?
    /// What stands in front of every text.
    public var prompt: Prompt?
    /// An adapter for the vectors.
    public var adapter: AttachedAdapter?
    /// Several adapters at once, in place of ``adapter``: their changes add up.
    public var adapters: [AttachedAdapter]
    /// Options as JSON, by the names that `mc_embed_options_set_json` of the C interface tells; they count more than those here.
    public var json: String?

    /// Makes options; what is not given is as the model says.
    public init(
        pooling: Pooling? = nil, normalizes: Bool? = nil, dimensions: Int? = nil, maximumTokens: Int? = nil, prompt: Prompt? = nil,
        adapter: AttachedAdapter? = nil, json: String? = nil,
        adapters: [AttachedAdapter] = []
    ) {
        self.pooling = pooling
        self.normalizes = normalizes
        self.dimensions = dimensions
        self.maximumTokens = maximumTokens
        self.prompt = prompt
        self.adapter = adapter
        self.json = json
        self.adapters = adapters
    }

    func native(_ cancel: CancelFlag) throws -> Handle {
        let handle = Handle(mc_embed_options_new(), free: mc_embed_options_free)
        let options = handle.pointer
        mc_embed_options_set_cancel(options, cancel.pointer)
        if let pooling { mc_embed_options_set_pooling(options, pooling.native) }
        if let normalizes { mc_embed_options_set_normalize(options, normalizes) }
        if let dimensions {
            try requirePositive(dimensions, "dimensions")
            mc_embed_options_set_dimensions(options, dimensions)
        }
        if let maximumTokens {
            try requirePositive(maximumTokens, "maximumTokens")
            mc_embed_options_set_max_length(options, maximumTokens)
        }
        switch prompt {
        case .named(let name):
            try requireNoNUL(name, "prompt")
            mc_embed_options_set_prompt_name(options, name)
        case .text(let text):
            try requireNoNUL(text, "prompt")
            mc_embed_options_set_prefix(options, text)
        case nil: break
        }
        if let adapter { mc_embed_options_set_lora(options, adapter.adapter.handle.pointer, adapter.scale) }
        if !adapters.isEmpty {
            let loras: [OpaquePointer?] = adapters.map(\.adapter.handle.pointer)
            mc_embed_options_set_loras(options, loras, adapters.map(\.scale), adapters.count)
        }
        json?.withBytes { mc_embed_options_set_json(options, $0, $1) }
        return handle
    }
}

extension EmbeddingOptions.Pooling {
    var native: mc_pooling {
        switch self {
        case .mean: .MC_POOLING_MEAN
        case .first: .MC_POOLING_CLS
        case .last: .MC_POOLING_LAST
        case .maximum: .MC_POOLING_MAX
        case .meanOverSquareRoot: .MC_POOLING_MEAN_SQRT_LEN
        case .weightedMean: .MC_POOLING_WEIGHTED_MEAN
        }
    }
}

extension EmbeddingModel.Similarity {
    var native: mc_similarity {
        switch self {
        case .cosine: .MC_SIMILARITY_COSINE
        case .dot: .MC_SIMILARITY_DOT
        case .euclidean: .MC_SIMILARITY_EUCLIDEAN
        case .manhattan: .MC_SIMILARITY_MANHATTAN
        }
    }
}

extension [Float] {
    fileprivate func split(by length: Int) -> [[Float]] {
        length == 0 ? [] : stride(from: 0, to: count, by: length).map { Array(self[$0..<($0 + length)]) }
    }
}
