import Foundation
import MetalCandle
import Testing

extension MetalCandleTests { @Suite struct Reranking {
    private let reranker = root.appending(path: "tests/golden/rerankers/bert")
    private let query = "How do I sort a list of numbers?"
    private let documents = ["hello", "", "Sorts the numbers in place.", "a\0b"]

    @Test func scoresAreThoseOfTheReference() async throws {
        let model = try await RerankingModel.load(from: reranker)
        #expect(model.info.ranksDocuments)
        let scores = try await model.scores(of: documents, for: query)
        #expect(abs(scores[2] - 0.630089) < 5e-5)
        for (document, score) in zip(documents, scores) {
            #expect(try await model.scores(of: [document], for: query) == [score])
        }
        let logits = try await model.scores(of: documents, for: query, options: RerankingOptions(activation: .identity))
        for (score, logit) in zip(scores, logits) { #expect(abs(1 / (1 + exp(-logit)) - score) < 1e-6) }
        #expect(try await model.scores(of: [], for: query).isEmpty)
    }

    @Test func theBestComesFirst() async throws {
        let model = try await RerankingModel.load(from: reranker)
        let scores = try await model.scores(of: documents + documents, for: query)
        let ranked = try await model.rank(documents + documents, for: query)
        #expect(ranked.count == 8)
        #expect(ranked.allSatisfy { scores[$0.index] == $0.score })
        #expect(zip(ranked, ranked.dropFirst()).allSatisfy { ($1.score, $0.index) < ($0.score, $1.index) })
        #expect(try await model.rank(documents, for: query, count: 2).count == 2)
        await expect(.invalidArgument, "count") { try await model.rank(documents, for: query, count: -1) }
    }

    @Test func badInputIsNamed() async throws {
        let model = try await RerankingModel.load(from: reranker)
        let named = RerankingOptions(prompt: .named("nobody"))
        await expect(.invalidArgument, "nobody") { try await model.scores(of: documents, for: query, options: named) }
        let short = RerankingOptions(activation: .sigmoid, maximumTokens: 2, prompt: .text(""))
        await expect(.invalidArgument, "max_length") { try await model.scores(of: documents, for: query, options: short) }
        let other = try await RerankingModel.load(from: tinyEmbed)
        #expect(!other.info.ranksDocuments)
        await expect(.unsupported, "rerank") { try await other.scores(of: documents, for: query) }
        model.unload()
        #expect(!model.isLoaded)
    }
}}
