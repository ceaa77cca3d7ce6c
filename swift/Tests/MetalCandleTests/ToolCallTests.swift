import Foundation
import Testing

@testable import MetalCandle

extension MetalCandleTests { @Suite struct ToolCalls {
    private let call = ToolCall(name: "time", arguments: #"{"zone":"UTC"}"#, id: "call_0")

    @Test func argumentsDecode() throws {
        struct Arguments: Decodable, Equatable { var zone: String }
        #expect(try call.decodeArguments() == Arguments(zone: "UTC"))
        #expect(throws: DecodingError.self) { try call.decodeArguments(as: [Int].self) }
    }

    /// The tiny model was never shown a tool, so one of the tokens of its answer is renamed to a call: that behind "App".
    private func modelThatCalls(in directory: TemporaryDirectory) async throws -> LanguageModel {
        let copy = try directory.copy(of: tinyCoder)
        let file = copy.appending(path: "tokenizer.json")
        var tokenizer = try #require(JSONSerialization.jsonObject(with: Data(contentsOf: file)) as? [String: Any])
        var bpe = try #require(tokenizer["model"] as? [String: Any])
        var vocabulary = try #require(bpe["vocab"] as? [String: Int])
        vocabulary[#"<tool_call>{"name":"time","arguments":{"zone":"UTC"}}</tool_call>"#] = vocabulary.removeValue(forKey: "ends")
        bpe["vocab"] = vocabulary
        bpe["merges"] = try #require(bpe["merges"] as? [[String]]).filter { $0.joined() != "ends" && !$0.contains("ends") }
        tokenizer["model"] = bpe
        try JSONSerialization.data(withJSONObject: tokenizer).write(to: file)
        return try await LanguageModel.load(from: copy)
    }

    @Test func aSessionWithToolsFindsCallsInAnswers() async throws {
        let directory = try TemporaryDirectory()
        let model = try await modelThatCalls(in: directory)
        let tool = ToolDefinition(name: "time", description: "The \"time\"", parameters: #"{"type": "object"}"#)
        var options = greedy
        options.answerFormat = "hermes"
        let session = ChatSession(model, tools: [tool], options: options)
        let response = try await session.respond(to: question)
        #expect(response.toolCalls == [call])
        // White space next to a call belongs to it.
        #expect(response.text == "Appan element to the back of a collection.")
        #expect(session.history.last == ChatMessage(.assistant, response.text, toolCalls: [call]))
        _ = try await session.respond(to: [.tool("12:00")], options: ResponseOptions(maximumTokens: 2))
        #expect(session.history.count == 4)

        // A call that has to be is one, whatever the model thinks of it.
        options.toolChoice = .tool("time")
        let required = try await ChatSession(model, tools: [tool], options: options).respond(to: question)
        #expect(required.text.isEmpty && required.toolCalls == [ToolCall(name: "time", arguments: "{}", id: "call_0")])
        options.toolChoice = .tool("date")
        await expect(.invalidArgument, "date") { [options] in
            try await ChatSession(model, tools: [tool], options: options).respond(to: question)
        }
        options.toolChoice = nil

        // Left behind the call: it was read, and stays.
        let other = ChatSession(model, tools: [tool], options: options)
        for try await event in other.streamResponse(to: question) { if case .toolCall = event { break } }
        #expect(other.history.last == ChatMessage(.assistant, "App", toolCalls: [call]))

        // Without tools a call is text.
        let without = try await ChatSession(model, options: options).respond(to: question)
        #expect(without.toolCalls.isEmpty && without.text.contains("<tool_call>"))
    }

    @Test func toolsRunUntilTheModelAnswers() async throws {
        struct Zone: Decodable, SchemaProviding {
            var zone: String
            static var schema: JSONSchema { .object(["zone": .string]) }
        }
        struct Place: Decodable, SchemaProviding {
            var city: String
            static var schema: JSONSchema { .object(["city": .string]) }
        }
        let directory = try TemporaryDirectory()
        let model = try await modelThatCalls(in: directory)
        var options = greedy
        options.answerFormat = "hermes"
        options.maximumTokens = 60
        let session = ChatSession(model, options: options)
        let zones = Recorder<String>()
        let time = CallableTool(name: "time", description: "The time") { (zone: Zone) in
            zones.append(zone.zone)
            return "12:00 in \(zone.zone)"
        }
        #expect(time.definition.parameters == Zone.schema.json)
        let response = try await session.respond(to: question, calling: [time], maximumRounds: 2)
        let rounds = zones.values.count
        #expect((1...2).contains(rounds) && Set(zones.values) == ["UTC"] && response.toolCalls.isEmpty)
        #expect(session.history.count == 2 + 2 * rounds && session.history.last?.content == response.text)
        #expect(session.history[1].toolCalls == [call] && session.history[2] == .tool("12:00 in UTC", of: call))

        // What the model cannot have meant is told to it, and what a tool throws is thrown.
        func result(_ tool: CallableTool) async throws -> String {
            let session = ChatSession(model, options: options)
            _ = try await session.respond(to: question, calling: [tool], maximumRounds: 1)
            return session.history[2].content
        }
        let place = CallableTool(name: "time", description: "") { (place: Place) in place.city }
        #expect(try await result(place) == "error: expected arguments of the schema \(Place.schema.json), found \(call.arguments)")
        let date = CallableTool(name: "date", description: "") { (zone: Zone) in zone.zone }
        #expect(try await result(date) == "error: expected a call of one of date, found one of time")
        struct Broken: Error {}
        let broken = CallableTool(time.definition) { _ in throw Broken() }
        let count = session.history.count
        await #expect(throws: Broken.self) { try await session.respond(to: question, calling: [broken]) }
        #expect(session.history.count == count && !session.isResponding)
        await expect(.invalidArgument, "maximumRounds") {
            try await session.respond(to: question, calling: [time], maximumRounds: 0)
        }

        // Piece by piece the same comes to stand in the history.
        let streamed = ChatSession(model, tools: [time.definition], options: options)
        var messages = [ChatMessage.user(question)]
        for _ in 0..<rounds {
            var calls: [ToolCall] = []
            for try await event in streamed.streamResponse(to: messages) { if case .toolCall(let call) = event { calls.append(call) } }
            messages = try await CallableTool.results(of: calls, by: [time])
        }
        #expect(streamed.history + messages == session.history.dropLast())

        // A call that has to be is one, once.
        options.toolChoice = .required
        let parameters = JSONSchema.object(["zone": .choice(["UTC"])]).json
        let only = CallableTool(ToolDefinition(name: "only", description: "", parameters: parameters)) { _ in "done" }
        let required = ChatSession(try await loadCoder(), options: options)
        _ = try await required.respond(to: question, calling: [only], maximumRounds: 8)
        #expect(required.history.count == 4 && required.history[1].toolCalls.map(\.name) == ["only"])
    }

    @Test func thoughtsAreToldApartAndStayInTheHistory() async throws {
        let model = try await LanguageModel.load(from: tinyCoder)
        let options = ResponseOptions(
            maximumTokens: 40, temperature: 0, jsonSchema: #"{"enum": [1]}"#, reasoningBudget: 4, answerFormat: "hermes")
        let session = ChatSession(
            model, templateVariables: [:], options: options)
        let response = try await session.respond(to: question)
        #expect(response.text == "1" && response.reasoning.isEmpty)
        let history = [ChatMessage.user("a"), ChatMessage(.assistant, "b", reasoning: "c")]
        let stored = try JSONDecoder().decode([ChatMessage].self, from: JSONEncoder().encode(history))
        #expect(stored == history)
    }

    @Test func aTemplateSeesToolsAndCallsAndVariables() async throws {
        let directory = try TemporaryDirectory()
        let copy = try directory.copy(of: tinyCoder)
        let config = copy.appending(path: "tokenizer_config.json")
        var json = try #require(JSONSerialization.jsonObject(with: Data(contentsOf: config)) as? [String: Any])
        // A template that refuses to render unless everything reached it.
        json["chat_template"] = """
            {%- if tools[0].function.name != 'time' or tools[0].function.description != 'The "time"'
                or tools[0].function.parameters.type != 'object' -%}{{ raise_exception('tools: ' + tools | tojson) }}{%- endif -%}
            {%- if mood != 'calm' -%}{{ raise_exception('variables') }}{%- endif -%}
            {%- if messages[1].tool_calls[0].function.arguments.zone != 'UTC' or messages[1].tool_calls[0].id != 'call_0'
                or messages[2].tool_call_id != 'call_0' or messages[2].name != 'time' -%}{{ raise_exception('calls') }}{%- endif -%}
            {%- for message in messages -%}{{ message.role + message.content }}{%- endfor -%}
            """
        try JSONSerialization.data(withJSONObject: json).write(to: config)
        let model = try await LanguageModel.load(from: copy)
        let tool = ToolDefinition(name: "time", description: "The \"time\"", parameters: #"{"type": "object"}"#)
        let history: [ChatMessage] = [.user("a \"b\" \\ \u{1}🦀"), ChatMessage(.assistant, "", toolCalls: [call])]
        let options = ResponseOptions(maximumTokens: 1)
        func session(_ tools: [ToolDefinition], _ variables: [String: String], _ history: [ChatMessage]) -> ChatSession {
            ChatSession(model, history: history, tools: tools, templateVariables: variables, options: options)
        }
        let calm = ["mood": "\"calm\""]
        let result = [ChatMessage.tool("12:00", of: call)]
        _ = try await session([tool], calm, history).respond(to: result)
        await expect(.template) { try await session([], calm, history).respond(to: result) }
        await expect(.template, "variables") { try await session([tool], [:], history).respond(to: result) }
        await expect(.template) { try await session([tool], calm, [history[0], .assistant("")]).respond(to: result) }
        await expect(.template, "calls") { try await session([tool], calm, history).respond(to: [.tool("12:00")]) }
    }
}}
