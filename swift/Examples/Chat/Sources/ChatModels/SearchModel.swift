import MetalCandle
import Observation

/// Finds the lines that are nearest in meaning to what is typed.
@MainActor @Observable public final class SearchModel {
    /// A line that was found.
    public struct Result: Identifiable, Sendable, Hashable {
        public let id: Int
        public let line: String
        public let similarity: Float
    }

    /// What is searched.
    public private(set) var lines: [String] = []
    public private(set) var results: [Result] = []
    public private(set) var failure: String?
    public private(set) var isIndexing = false
    /// What is searched for; results follow it.
    public var query = "" { didSet { if query != oldValue { search() } } }

    private let model: EmbeddingModel
    private var vectors: [[Float]] = []
    private var work: Task<Void, Never>?

    public init(_ model: EmbeddingModel) { self.model = model }

    /// Reads what is to be searched.
    public func index(_ text: String) {
        lines = text.split(whereSeparator: \.isNewline).map(String.init)
        (vectors, results, isIndexing) = ([], [], true)
        run { [model, lines] in
            let vectors = try await model.embed(lines)
            return { model in (model.vectors, model.isIndexing) = (vectors, false) }
        }
    }

    /// Waits until nothing is being searched any more.
    public func finish() async { await work?.value }

    private func search() {
        guard !isIndexing else { return }  // it follows the indexing
        run { [model, lines, vectors, query] in
            guard !query.isEmpty else { return { $0.results = [] } }
            let found = try await model.nearest(to: model.embed(query), in: vectors, count: 10)
            return { $0.results = found.map { Result(id: $0.index, line: lines[$0.index], similarity: $0.similarity) } }
        }
    }

    /// One thing at a time: what is newer stops what is older.
    private func run(_ operation: @escaping @Sendable () async throws -> @MainActor @Sendable (SearchModel) -> Void) {
        work?.cancel()
        work = Task {
            do {
                let show = try await operation()
                try Task.checkCancellation()
                failure = nil
                let wasIndexing = isIndexing
                show(self)
                if wasIndexing, !query.isEmpty { search() }
            } catch {
                // Cancelled by something newer, which shows how it is.
                if !Task.isCancelled { (failure, isIndexing) = (error.localizedDescription, false) }
            }
        }
    }
}
