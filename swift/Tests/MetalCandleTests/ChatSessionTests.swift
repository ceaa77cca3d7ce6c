import Foundation
import MetalCandle
import Testing

extension MetalCandleTests { @Suite struct ChatSessions {
    @Test func anAnswerAndItsHistory() async throws {
        let session = ChatSession(try await loadCoder())
        let response = try await session.respond(to: question, options: greedy)
        #expect(response.text == answer)
        #expect(response.toolCalls.isEmpty)
        #expect(response.completion.finishReason == .endOfText)
        #expect(response.completion.tokens.last == 4095)
        #expect(response.completion.promptTokens == 40)
        #expect(response.completion.decodeTime > .zero && response.completion.tokensPerSecond > 0)
        #expect(session.history == [.user(question), .assistant(answer)])
        #expect(!session.isResponding)
    }

    @Test func aStreamIsTheAnswerInPieces() async throws {
        let model = try await loadCoder()
        var events: [GenerationEvent] = []
        let session = ChatSession(model, options: greedy)
        for try await event in session.streamResponse(to: question) {
            events.append(event)
            if case .finished = event { #expect(!session.isResponding) } else { #expect(session.isResponding) }
        }
        let whole = try await ChatSession(model, options: greedy).respond(to: question)
        let pieces = events.compactMap { if case .text(let piece) = $0 { piece } else { nil } }
        #expect(pieces.joined() == whole.text)
        #expect(pieces.count > 5 && !pieces.contains(""))
        guard case .finished(let completion) = events.last else { Issue.record("no end"); return }
        #expect(events.count == pieces.count + 1)
        #expect(completion.tokens == whole.completion.tokens)
        #expect(completion.finishReason == .endOfText)
        #expect(session.history == [.user(question), .assistant(answer)])
    }

    @Test func nothingComesBehindTheEnd() async throws {
        var events = ChatSession(try await loadCoder(), options: greedy).streamResponse(to: question).makeAsyncIterator()
        while let event = try await events.next() { if case .finished = event { break } }
        #expect(try await events.next() == nil)
        #expect(try await events.next() == nil)
    }

    @Test func aStreamHasOneReader() async throws {
        let stream = ChatSession(try await loadCoder(), options: greedy).streamResponse(to: question)
        _ = try await stream.collect()
        await expect(.invalidArgument, "reader") { try await stream.collect() }
    }

    @Test func snapshotsGrowToTheAnswer() async throws {
        let session = ChatSession(try await loadCoder(), options: greedy)
        var last = ""
        for try await text in session.streamResponse(to: question).snapshots {
            #expect(text.hasPrefix(last) && text.count > last.count)
            last = text
        }
        #expect(last == answer)
        #expect(session.history.count == 2)
    }

    @Test func aTurnEvaluatesOnlyWhatIsNew() async throws {
        let model = try await loadCoder()
        let session = ChatSession(model, options: greedy)
        _ = try await session.respond(to: question)
        let second = try await session.respond(to: "What is the signature of `Option::map`?")
        let alone = try await ChatSession(model, history: [.user(question), .assistant(answer)], options: greedy)
            .respond(to: "What is the signature of `Option::map`?")
        #expect(second.text == alone.text)
        #expect(second.completion.promptTokens == alone.completion.promptTokens)
        #expect(session.history.count == 4)
        #expect(try JSONDecoder().decode([ChatMessage].self, from: JSONEncoder().encode(session.history)) == session.history)
    }

    @Test func instructionsAreTheSystemMessage() async throws {
        let model = try await loadCoder()
        let own = "You answer questions about the Rust standard library."
        let with = try await ChatSession(model, instructions: own, options: greedy).respond(to: question)
        let without = try await ChatSession(model, options: greedy).respond(to: question)
        let other = try await ChatSession(model, instructions: "Ahoy.", options: greedy).respond(to: question)
        #expect(with.completion.promptTokens == without.completion.promptTokens)
        #expect(with.text == without.text)
        #expect(other.completion.promptTokens < with.completion.promptTokens)
    }

    @Test func resetGoesBackToTheBeginning() async throws {
        let session = ChatSession(try await loadCoder(), instructions: "Be brief.", history: [.user("A"), .assistant("B")])
        let initial = session.history
        #expect(initial == [.system("Be brief."), .user("A"), .assistant("B")])
        let first = try await session.respond(to: question, options: greedy)
        #expect(session.history.count == 5)
        try session.reset()
        #expect(session.history == initial)
        #expect(try await session.respond(to: question, options: greedy).text == first.text)
    }

    @Test func charactersAreNeverSplit() async throws {
        let model = try await loadCoder()
        // The vocabulary has no emoji: a crab is four tokens, and the model writes what its logits are bent to.
        let crab = try await model.tokens("🦀")
        #expect(crab.count > 1)
        let options = ResponseOptions(
            maximumTokens: 24, temperature: 1, logitBias: Dictionary(uniqueKeysWithValues: Set(crab).map { ($0, 100) }), seed: 7)
        var pieces: [String] = []
        var completion: Completion?
        for try await event in model.streamCompletion(of: "🦀🦀🦀🦀", options: options) {
            switch event {
            case .text(let piece): pieces.append(piece)
            case .reasoning, .toolCall, .rejectedToolCall: Issue.record("the model has no marks of them")
            case .finished(let end): completion = end
            }
        }
        #expect(completion?.tokens.count == 24)
        #expect(Set(completion?.tokens ?? []).isSubset(of: Set(crab)))
        // Bytes in a random order are mostly no characters: those become U+FFFD, whole ones stay whole.
        #expect(pieces.joined().unicodeScalars.allSatisfy { $0 == "\u{FFFD}" || $0.value >= 0x80 })
        #expect(pieces.count < 24)
    }

    @Test func anEmojiComesInOnePiece() async throws {
        let model = try await loadCoder()
        let options = ResponseOptions(jsonSchema: #"{"const": "🦀👩‍👩‍👧 ok"}"#)
        var pieces: [String] = []
        var count = 0
        for try await event in model.streamCompletion(of: "a crab and a family: ", options: options) {
            if case .text(let piece) = event { pieces.append(piece) }
            if case .finished(let completion) = event { count = completion.tokens.count }
        }
        #expect(pieces.joined() == #""🦀👩‍👩‍👧 ok""#)
        #expect(pieces.contains { $0.contains("🦀") })
        #expect(pieces.contains { $0.contains("👩‍👩‍👧") })
        #expect(pieces.count < count)
    }

    @Test func stopTextsEndTheAnswer() async throws {
        let session = ChatSession(try await loadCoder())
        let response = try await session.respond(to: question, options: ResponseOptions(temperature: 0, stops: ["back of", "never"]))
        #expect(response.text == "Appends an element to the ")
        #expect(response.completion.finishReason == .stopText)
        await expect(.invalidArgument, "stop") { try await session.respond(to: question, options: ResponseOptions(stops: [""])) }
        #expect(session.history.count == 2)
    }

    @Test func seedsRepeatAndDiffer() async throws {
        let model = try await loadCoder()
        func text(_ seed: UInt64) async throws -> String {
            let options = ResponseOptions(maximumTokens: 24, temperature: 1.5, seed: seed)
            return try await model.complete("fn ", options: options).text
        }
        let first = try await text(1)
        #expect(try await text(1) == first)
        var others: Set<String> = []
        for seed in 2...5 { others.insert(try await text(UInt64(seed))) }
        #expect(!others.isSubset(of: [first]))
    }

    @Test(arguments: [
        (ResponseOptions(maximumTokens: 0), "maximumTokens"), (ResponseOptions(temperature: -1), "temperature"),
        (ResponseOptions(topK: -1), "topK"), (ResponseOptions(topP: 0), "top_p"), (ResponseOptions(minP: 2), "min_p"),
        (ResponseOptions(repetitionPenalty: .init(0)), "repetition_penalty"),
        (ResponseOptions(repetitionPenalty: .init(1.1, window: -1)), "window"),
        (ResponseOptions(frequencyPenalty: .nan), "frequency_penalty"), (ResponseOptions(presencePenalty: .infinity), "presence_penalty"),
        (ResponseOptions(logitBias: [4096: 1]), "4096"), (ResponseOptions(jsonSchema: ""), "schema"),
        (ResponseOptions(jsonSchema: #"{"not": {}}"#), "not"),
    ]) func aBadOptionIsNamed(options: ResponseOptions, name: String) async throws {
        let session = ChatSession(try await loadCoder())
        await expect(.invalidArgument, name) { try await session.respond(to: question, options: options) }
        #expect(session.history.isEmpty && !session.isResponding)
    }

    @Test func samplingOptionsReachTheModel() async throws {
        let model = try await loadCoder()
        let base = ResponseOptions(maximumTokens: 16, temperature: 2, seed: 3)
        let wild = try await model.complete("fn main() {", options: base).text
        var likeliest = base
        likeliest.temperature = 0
        let greedy = try await model.complete("fn main() {", options: likeliest).text
        #expect(wild != greedy)
        let narrow: [(inout ResponseOptions) -> Void] = [{ $0.topK = 1 }, { $0.topP = 1e-6 }, { $0.minP = 1 }]
        for set in narrow {
            var options = base
            set(&options)
            #expect(try await model.complete("fn main() {", options: options).text == greedy)
        }
        let different: [(inout ResponseOptions) -> Void] = [
            { $0.repetitionPenalty = .init(5) }, { $0.frequencyPenalty = 50 }, { $0.presencePenalty = 50 },
        ]
        for set in different {
            var options = likeliest
            set(&options)
            #expect(try await model.complete("fn fn fn fn", options: options).text
                != model.complete("fn fn fn fn", options: likeliest).text)
        }
    }

    @Test func aSchemaMakesTheAnswerAValue() async throws {
        struct Reply: Codable, Equatable { var isRust: Bool; var level: Int; var kind: String }
        let session = ChatSession(try await loadCoder())
        let schema = """
            {"type": "object", "additionalProperties": false, "required": ["isRust", "level", "kind"], "properties": {
             "isRust": {"type": "boolean"}, "level": {"enum": [1, 2, 3]}, "kind": {"enum": ["vector", "map"]}}}
            """
        let reply = try await session.respond(to: question, as: Reply.self, schema: schema, options: greedy)
        #expect((1...3).contains(reply.level))
        #expect(["vector", "map"].contains(reply.kind))
        #expect(try JSONDecoder().decode(Reply.self, from: Data(session.history[1].content.utf8)) == reply)

        // Too short, and of another type: neither leaves a trace.
        let short = ResponseOptions(maximumTokens: 3, temperature: 0)
        await expect(.format, "3 tokens") { try await session.respond(to: question, as: Reply.self, schema: schema, options: short) }
        await #expect(throws: DecodingError.self) { try await session.respond(to: question, as: Int.self, schema: schema) }
        #expect(session.history.count == 2 && !session.isResponding)
    }

    @Test func wrongJSONOfToolsAndVariablesIsTyped() async throws {
        let model = try await loadCoder()
        let broken = ChatSession(model, tools: [ToolDefinition(name: "a", description: "", parameters: "{")])
        await expect(.format) { try await broken.respond(to: question) }
        let wrong = ChatSession(model, templateVariables: ["enable_thinking": "perhaps"])
        await expect(.format) { try await wrong.respond(to: question) }
        let cut = ChatSession(model, templateVariables: ["enable_thinking\0": "false"])
        await expect(.invalidArgument, "templateVariables") { try await cut.respond(to: question) }
        #expect(broken.history.isEmpty && !broken.isResponding)
    }

    @Test func aFullContextIsTyped() async throws {
        let session = ChatSession(try await loadCoder(ModelOptions(maximumContext: 64)))
        await expect(.contextFull) { try await session.respond(to: String(repeating: "fn main() ", count: 100)) }
        #expect(session.history.isEmpty)
        #expect(try await session.respond(to: question, options: greedy).text == answer)
    }
}}
