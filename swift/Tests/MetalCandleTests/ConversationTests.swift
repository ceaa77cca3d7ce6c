import CMetalCandle
import Foundation
import Observation
import Synchronization
import Testing

@testable import MetalCandle

extension MetalCandleTests { @Suite struct Conversations {
    private let other = "What is the signature of `Option::map`?"

    @Test func anAnswerIsMadeAgainInItsPlace() async throws {
        let session = ChatSession(try await loadCoder(), instructions: "Be brief.", options: greedy)
        await expect(.invalidArgument, "question") { try await session.regenerate() }
        let first = try await session.respond(to: question)
        let second = try await session.regenerate()
        #expect(second.text == first.text && second.completion.promptTokens == first.completion.promptTokens)
        #expect(session.history == [.system("Be brief."), .user(question), .assistant(first.text)])
        let wild = ResponseOptions(maximumTokens: 30, temperature: 2, seed: 5)
        let third = try await session.regenerate(options: wild)
        #expect(third.text != first.text && session.history == [.system("Be brief."), .user(question), .assistant(third.text)])

        // What fails leaves the old answer, what is left in the middle takes its place.
        await expect(.invalidArgument, "top_p") { try await session.regenerate(options: ResponseOptions(topP: 0)) }
        #expect(session.history.last == .assistant(third.text) && !session.isResponding)
        for try await event in session.streamRegeneration() { if case .text = event { break } }
        #expect(session.history.count == 3 && first.text.hasPrefix(session.history[2].content))
        #expect(try await session.streamRegeneration().collect().text == first.text)
        #expect(session.history.last == .assistant(first.text))
    }

    @Test func aQuestionIsAskedInPlaceOfAnother() async throws {
        let model = try await loadCoder()
        let session = ChatSession(model, options: greedy)
        _ = try await session.respond(to: other)
        _ = try await session.respond(to: other)
        for index in [-1, 1, 4] { await expect(.invalidArgument, "index") { try await session.edit(at: index, to: question) } }
        #expect(session.history.count == 4)
        #expect(try await session.edit(at: 0, to: question).text == answer)
        #expect(session.history == [.user(question), .assistant(answer)])
        let next = try await session.respond(to: other).text
        #expect(try await session.streamEdit(at: 2, to: other).collect().text == next)
        #expect(session.history == [.user(question), .assistant(answer), .user(other), .assistant(next)])
    }

    @Test func aForkGoesItsOwnWayWithoutEvaluatingAgain() async throws {
        let model = try await loadCoder()
        let session = ChatSession(model, options: greedy)
        let empty = try await session.fork()
        #expect(empty.history.isEmpty)
        _ = try await session.respond(to: question)
        let fork = try await session.fork()
        #expect(fork.history == session.history)
        let held = try await heldTokens(fork)
        #expect((held ?? 0) > 40)
        #expect(try await heldTokens(session) == held)
        let text = try await fork.respond(to: other).text
        #expect(session.history.count == 2 && fork.history.count == 4)
        #expect(try await session.respond(to: other).text == text)
        try fork.reset()
        #expect(fork.history.isEmpty && session.history.count == 4)
    }

    @Test func aSavedConversationGoesOn() async throws {
        let directory = try TemporaryDirectory()
        let place = directory.url.appending(path: "a/conversation")
        let model = try await loadCoder()
        let tools = [ToolDefinition(name: "time", description: "The \"time\"", parameters: #"{"type": "object"}"#)]
        let session = ChatSession(model, instructions: "Be brief.", tools: tools, templateVariables: ["a": "1"], options: greedy)
        _ = try await session.respond(to: question)
        try await session.save(to: place)
        let again = try await ChatSession.load(from: place, model: model, options: greedy)
        #expect(again.history == session.history && again.tools == tools && again.templateVariables == ["a": "1"])
        #expect(try await heldTokens(again) == heldTokens(session))
        let text = try await session.respond(to: other).text
        #expect(try await again.respond(to: other).text == text)
        try again.reset()
        #expect(again.history == [.system("Be brief.")])

        // Over another one; before anything was evaluated; for another model, which evaluates it anew.
        try await ChatSession(model, history: [.user("a")]).save(to: place)
        let unused = try await ChatSession.load(from: place, model: model, options: greedy)
        #expect(unused.history == [.user("a")])
        #expect(try await unused.edit(at: 0, to: question).text == answer)
        try await session.save(to: place)
        let half = try await loadCoder(ModelOptions(kvCache: .f16))
        let elsewhere = try await ChatSession.load(from: place, model: half, options: greedy)
        #expect(try await heldTokens(elsewhere) == nil && elsewhere.history == session.history)
        _ = try await elsewhere.respond(to: question)
    }

    @Test func whatIsNoConversationIsRefused() async throws {
        let directory = try TemporaryDirectory()
        let model = try await loadCoder()
        await expect(.notFound, "conversation.json") { try await ChatSession.load(from: directory.url, model: model) }
        let file = directory.url.appending(path: "conversation.json")
        let empty = #","initial":[],"history":[],"tools":[],"templateVariables":{}}"#
        for (text, message) in [("{}", "expected a conversation"), ("{\"version\":2" + empty, "version 1, found 2")] {
            try Data(text.utf8).write(to: file)
            await expect(.format, message) { try await ChatSession.load(from: directory.url, model: model) }
        }
        try Data(("{\"version\":1" + empty).utf8).write(to: file)
        #expect(try await ChatSession.load(from: directory.url, model: model).history.isEmpty)
        try Data("damaged".utf8).write(to: directory.url.appending(path: "states"))
        await expect(.format, "states") { try await ChatSession.load(from: directory.url, model: model) }
        // A file stands where the directory would be.
        await expect(.io) { try await ChatSession(model).save(to: file) }
    }

    @Test func howFarThePromptIsIsTold() async throws {
        let model = try await loadCoder()
        let told = Recorder<PrefillProgress>()
        var options = greedy
        options.maximumTokens = 4
        let silent = options
        options.prefillProgress = { told.append($0) }
        let long = String(repeating: "fn main() { } ", count: 120)
        let session = ChatSession(model, options: options)
        let found = try await session.respond(to: long)
        let total = found.completion.promptTokens
        #expect(total > 512)
        #expect(told.values == [0, 512, total].map { PrefillProgress(tokens: $0, total: total) })
        #expect(told.values.map(\.fraction).last == 1)
        let want = try await ChatSession(model, options: silent).respond(to: long)
        #expect(found.completion.tokens == want.completion.tokens && total == want.completion.promptTokens)
        // Of the next turn only what is new.
        _ = try await session.respond(to: question)
        let second = told.values.dropFirst(3)
        #expect(second.count == 2 && second.allSatisfy { $0.total < 100 })

        let before = told.values.count
        let text = try await model.complete(long, options: options)
        #expect(try await text.completion.tokens == model.complete(long, options: silent).completion.tokens)
        #expect(told.values.dropFirst(before).map(\.tokens) == [0, 512, text.completion.promptTokens])
        await expect(.invalidArgument) { [options] in try await model.complete("", options: options) }
    }

    @Test func adaptersCanBeThereFromTheBeginning() async throws {
        let directory = try TemporaryDirectory()
        let model = try await loadCoder()
        let adapter = AttachedAdapter(try await Adapter(directory: writeAdapter(to: directory.url), for: model))
        let options = ResponseOptions(maximumTokens: 24, temperature: 0)
        let set = ChatSession(model, options: options)
        set.adapters = [adapter]
        let with = ChatSession(model, adapters: [adapter], options: options)
        let text = try await with.respond(to: question).text
        #expect(try await set.respond(to: question).text == text)
        #expect(try await ChatSession(model, options: options).respond(to: question).text != text)
        #expect(try await with.fork().adapters.count == 1)
    }

    @Test func aViewHearsOfWhatChanges() async throws {
        let session = ChatSession(try await loadCoder(), options: greedy)
        let heard = Recorder<String>()
        func watch(_ name: String, _ read: @escaping () -> Void) {
            withObservationTracking(read) { heard.append(name) }
        }
        watch("history") { _ = session.history }
        watch("isResponding") { _ = session.isResponding }
        watch("partialAnswer") { _ = session.partialAnswer }
        watch("adapters") { _ = session.adapters }
        var text = ""
        for try await event in session.streamResponse(to: question) {
            guard case .text(let piece) = event else { continue }
            text += piece
            #expect(session.partialAnswer == .assistant(text) && session.history.isEmpty)
        }
        #expect(session.partialAnswer == nil && session.history.last == .assistant(text))
        #expect(heard.values == ["isResponding", "partialAnswer", "history"])
        session.adapters = []
        #expect(heard.values.last == "adapters")
        watch("reset") { _ = session.history }
        try session.reset()
        #expect(heard.values.last == "reset")
    }

    @Test func anAnswerIsAValueOfItsType() async throws {
        enum Kind: String, Decodable, CaseIterable, SchemaProviding { case vector, map }
        struct Part: Decodable, Equatable, SchemaProviding {
            var name: String
            static var schema: JSONSchema { .object(["name": .choice(["\"a\"\n", "b"])]) }
        }
        struct Reply: Decodable, SchemaProviding {
            var isRust: Bool
            var level: Int
            var share: Double
            var kind: Kind
            var parts: [Part]
            var note: String?

            static var schema: JSONSchema {
                .object(
                    [
                        "isRust": Bool.schema, "level": .integer(1...3), "share": .number(0...1), "kind": Kind.schema,
                        "parts": .array(of: Part.schema, count: 1...2), "note": .string(matching: "^[a-z]{0,3}$"),
                    ], optional: ["note"])
            }
        }
        let session = ChatSession(try await loadCoder())
        for seed in 1...4 {
            let options = ResponseOptions(maximumTokens: 400, temperature: 1, seed: UInt64(seed))
            let reply: Reply = try await session.respond(to: question, options: options)
            #expect((1...3).contains(reply.level) && (0...1).contains(reply.share) && (1...2).contains(reply.parts.count))
            #expect(reply.parts.allSatisfy { ["\"a\"\n", "b"].contains($0.name) } && (reply.note?.count ?? 0) <= 3)
        }
        #expect([Int]?.schema.json == #"{"anyOf":[{"type":"array","items":\#(Int.schema.json)},{"type":"null"}]}"#)
        _ = try await session.respond(to: question, as: Bool?.self, options: greedy)
        #expect(["true", "false", "null"].contains(session.history.last?.content))
    }
}}

/// How many tokens the native session of a conversation holds; nil if it has none.
private func heldTokens(_ session: ChatSession) async throws -> Int? {
    let held = Mutex<Int?>(nil)
    try await session.onQueue { native, owner in
        let position = native.existingSession(of: owner).map { mc_session_position($0.pointer) }
        held.withLock { $0 = position }
    }
    return held.withLock { $0 }
}
