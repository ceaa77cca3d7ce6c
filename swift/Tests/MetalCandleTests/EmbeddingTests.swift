import Foundation
import MetalCandle
import Testing

extension MetalCandleTests { @Suite struct Embeddings {
    private let texts = ["Appends an element to a vector.", "", "Öffnet eine Datei 🦀", "a\0b", "Opens a file."]

    @Test func aBatchIsItsTextsOneByOne() async throws {
        let model = try await EmbeddingModel.load(from: tinyEmbed)
        let batch = try await model.embed(texts)
        #expect(batch.count == texts.count)
        for (text, vector) in zip(texts, batch) { #expect(try await model.embed(text) == vector) }
        #expect(try await model.embed([String]()).isEmpty)
        #expect(try await model.embed(["", ""]).count == 2)
    }

    @Test func vectorsHaveLengthOne() async throws {
        let model = try await EmbeddingModel.load(from: tinyEmbed)
        for vector in try await model.embed(texts) {
            #expect(vector.count == 192)
            #expect(abs(vector.reduce(0) { $0 + $1 * $1 } - 1) < 1e-5)
        }
    }

    @Test func theNearestIsTheOneThatAnswers() async throws {
        let model = try await EmbeddingModel.load(from: tinyEmbed)
        let documents = try await model.embed(texts)
        let query = try await model.embed("How do I push onto a Vec?")
        let found = try await model.nearest(to: query, in: documents, count: 9)
        #expect(found.count == texts.count)
        #expect(found.first?.index == 0)
        #expect(zip(found, found.dropFirst()).allSatisfy { $0.similarity >= $1.similarity })
        let cosine = zip(query, documents[0]).reduce(0) { $0 + $1.0 * $1.1 }
        #expect(try model.similarity() == .cosine)
        #expect(abs(found[0].similarity - cosine) < 1e-5)
        #expect(try await model.similarity(query, documents[0]) == found[0].similarity)
        #expect(try await model.nearest(to: query, in: [], count: 3).isEmpty)
        #expect(try await model.nearest(to: query, in: documents, count: 0).isEmpty)
        await expect(.invalidArgument, "documents[1]") { try await model.nearest(to: query, in: [query, [1]], count: 1) }
        await expect(.invalidArgument, "count") { try await model.nearest(to: query, in: documents, count: -1) }
    }

    @Test func optionsChangeTheVectors() async throws {
        let model = try await EmbeddingModel.load(from: tinyEmbed)
        let text = texts[0]
        let whole = try await model.embed(text)
        #expect(try await model.embed(text, options: EmbeddingOptions(pooling: .mean, normalizes: true)) == whole)
        for pooling: EmbeddingOptions.Pooling in [.first, .last, .maximum, .weightedMean] {
            #expect(try await model.embed(text, options: EmbeddingOptions(pooling: pooling)) != whole)
        }
        let long = try await model.embed(text, options: EmbeddingOptions(pooling: .meanOverSquareRoot, normalizes: false))
        #expect(long.reduce(0) { $0 + $1 * $1 } > 1.1)
        #expect(try await model.embed(text, options: EmbeddingOptions(dimensions: 64)).count == 64)
        #expect(try await model.embed(text, options: EmbeddingOptions(maximumTokens: 4)) != whole)
        #expect(try await model.embed(text, options: EmbeddingOptions(prompt: .text("query: "))) == model.embed("query: " + text))
        await expect(.invalidArgument, "dimensions") { try await model.embed(text, options: EmbeddingOptions(dimensions: 1000)) }
        await expect(.invalidArgument, "dimensions") { try await model.embed(text, options: EmbeddingOptions(dimensions: 0)) }
        await expect(.invalidArgument, "nonesuch") { try await model.embed(text, options: EmbeddingOptions(prompt: .named("nonesuch"))) }
        for prompt: EmbeddingOptions.Prompt in [.named("query\0"), .text("a\0b")] {
            await expect(.invalidArgument, "prompt") { try await model.embed(text, options: EmbeddingOptions(prompt: prompt)) }
        }
    }

    @Test func aLanguageModelCanEmbedToo() async throws {
        let model = try await EmbeddingModel.load(from: tinyCoder)
        #expect(try await model.embed("fn main()").count == 256)
        model.unload()
        #expect(!model.isLoaded)
        await expect(.invalidArgument, "unloaded") { try await model.embed("a") }
    }
}}
