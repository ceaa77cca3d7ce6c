import Foundation
import MetalCandle
import Synchronization
import Testing

extension MetalCandleTests { @Suite struct Adapters {
    @Test func anAdapterChangesTheAnswerAndLeavesNoTrace() async throws {
        let directory = try TemporaryDirectory()
        let model = try await loadCoder()
        let adapter = try await Adapter(directory: writeAdapter(to: directory.url), for: model)
        #expect(adapter.rank == 2 && adapter.alpha == 16)
        #expect(adapter.parameterCount == 8 * 2 * (256 + 256))

        let session = ChatSession(model, options: ResponseOptions(maximumTokens: 24, temperature: 0))
        let before = try await session.respond(to: question).text
        func again() async throws -> String {
            try session.reset()
            return try await session.respond(to: question).text
        }
        session.adapters = [AttachedAdapter(adapter)]
        let changed = try await again()
        #expect(changed != before)
        session.adapters = [AttachedAdapter(adapter, scale: 0)]
        #expect(try await again() == before)
        session.adapters = []
        #expect(try await again() == before)

        // For one answer alone, and merged into a model of its own.
        try session.reset()
        let once = ResponseOptions(maximumTokens: 24, temperature: 0, adapter: AttachedAdapter(adapter))
        #expect(try await session.respond(to: question, options: once).text == changed)
        #expect(try await again() == before)
        let merged = try await model.merging(adapter)
        #expect(try await ChatSession(merged).respond(to: question, options: ResponseOptions(maximumTokens: 24, temperature: 0)).text == changed)
    }

    @Test func aMergedModelIsKept() async throws {
        let directory = try TemporaryDirectory()
        let model = try await loadCoder()
        let merged = try await model.merging(Adapter(directory: writeAdapter(to: directory.url), for: model))
        let copy = directory.url.appending(path: "merged")
        let told = Mutex([Double]())
        try await merged.save(to: copy) { done in told.withLock { $0.append(done) } }
        let fractions = told.withLock { $0 }
        #expect(fractions.last == 1 && fractions == fractions.sorted())
        let options = ResponseOptions(maximumTokens: 16, temperature: 0)
        let again = try await LanguageModel.load(from: copy)
        #expect(try await again.complete("fn main", options: options).text == merged.complete("fn main", options: options).text)
        await expect(.invalidArgument) { try await merged.save(to: copy) }
        await expect(.unsupported) { try await merged.saveGGUF(to: directory.url.appending(path: "model.gguf")) }
        let late = directory.url.appending(path: "late")
        let cancelled = Task {
            withUnsafeCurrentTask { $0?.cancel() }
            try await merged.save(to: late, as: .bfloat16)
        }
        await #expect(throws: CancellationError.self) { try await cancelled.value }
        #expect(!FileManager.default.fileExists(atPath: late.path))
    }

    @Test func aSavedAdapterIsTheSame() async throws {
        let directory = try TemporaryDirectory()
        let model = try await loadCoder()
        let adapter = try await Adapter(directory: writeAdapter(to: directory.url), for: model)
        let copy = directory.url.appending(path: "copy")
        try await adapter.save(to: copy)
        let loaded = try await Adapter(directory: copy, for: model)
        func text(_ adapter: Adapter) async throws -> String {
            try await model.complete("fn main", options: .init(maximumTokens: 16, temperature: 0, adapter: .init(adapter))).text
        }
        #expect(try await text(adapter) == text(loaded))
        #expect(loaded.parameterCount == adapter.parameterCount)
    }

    @Test func anAdapterOfAnotherModelIsAMismatch() async throws {
        let directory = try TemporaryDirectory()
        let adapter = try await Adapter(directory: writeAdapter(to: directory.url), for: loadCoder())
        let other = try await loadCoder(ModelOptions(weightType: .float32))
        let session = ChatSession(other, options: greedy)
        session.adapters = [AttachedAdapter(adapter)]
        await expect(.mismatch) { try await session.respond(to: question) }
        session.adapters = []
        #expect(try await session.respond(to: question).text == answer)
        await expect(.mismatch) { try await other.merging(adapter) }
    }

    @Test func adaptersOfEmbeddings() async throws {
        let directory = try TemporaryDirectory()
        let model = try await EmbeddingModel.load(from: tinyCoder)
        let adapter = try await Adapter(directory: writeAdapter(to: directory.url), for: model)
        let plain = try await model.embed("fn main")
        let changed = try await model.embed("fn main", options: EmbeddingOptions(adapter: AttachedAdapter(adapter)))
        #expect(plain != changed)
        #expect(try await model.embed("fn main") == plain)
    }

    @Test func aDirectoryWithoutAnAdapterIsNotFound() async throws {
        let directory = try TemporaryDirectory()
        let model = try await loadCoder()
        await expect(.notFound, "adapter_config.json") { try await Adapter(directory: directory.url, for: model) }
    }
}}
