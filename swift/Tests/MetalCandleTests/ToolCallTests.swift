import Testing

@testable import MetalCandle

extension MetalCandleTests { @Suite struct ToolCalls {
    private let call = ToolCall(name: "time", arguments: #"{"zone":"UTC"}"#)

    /// What a parser makes of pieces: neighbouring texts joined.
    private func read(_ pieces: [String]) -> [GenerationEvent] {
        var parser = ToolCallParser()
        return (pieces.flatMap { parser.read($0) } + parser.end()).reduce(into: []) { events, event in
            if case .text(let new) = event, case .text(let old)? = events.last {
                events[events.count - 1] = .text(old + new)
            } else {
                events.append(event)
            }
        }
    }

    @Test func callsAreFoundWhereverTheTextIsCut() {
        let text = #"Let me see. <tool_call>{"name": "time", "arguments": {"zone": "UTC"}}</tool_call>\#n<tool_call>"#
            + #"{"arguments": {"zone": "UTC"}, "name": "time"}</tool_call> 1 < 2"#
        let expected: [GenerationEvent] = [.text("Let me see. "), .toolCall(call), .text("\n"), .toolCall(call), .text(" 1 < 2")]
        #expect(read([text]) == expected)
        #expect(read(text.map { String($0) }) == expected)
        for cut in text.indices {
            #expect(read([String(text[..<cut]), String(text[cut...])]) == expected)
        }
    }

    @Test(arguments: [
        "<tool_call>nonsense</tool_call>", "<tool_call>{\"name\": \"time\"}</tool_call>", "<tool_call>{\"name\": \"time\"", "a <tool_c",
        "<<tool_", "</tool_call>",
    ]) func whatIsNoCallStaysText(text: String) {
        #expect(read([text]) == [.text(text)])
        #expect(read(text.map { String($0) }) == [.text(text)])
    }

    @Test func textThatCannotBeACallIsNotHeldBack() {
        var parser = ToolCallParser()
        #expect(parser.read("1 <") == [.text("1 ")])
        #expect(parser.read(" 2") == [.text("< 2")])
        #expect(parser.end().isEmpty)
    }

    @Test func argumentsDecode() throws {
        struct Arguments: Decodable, Equatable { var zone: String }
        #expect(try call.decodeArguments() == Arguments(zone: "UTC"))
        #expect(throws: DecodingError.self) { try call.decodeArguments(as: [Int].self) }
    }

    @Test func aSessionWithToolsGivesCallsAsEvents() async throws {
        // The tiny model was never shown a tool; a template that writes one for it, and the likeliest token bent to its end, will do.
        let model = try await loadCoder()
        let tool = ToolDefinition(name: "time", description: "", parameters: #"{"type": "object"}"#)
        let session = ChatSession(model, tools: [tool], options: greedy)
        let stop = try await model.tokens("<|im_end|>")
        #expect(stop.count == 1)
        let response = try await session.respond(to: question)
        #expect(response.toolCalls.isEmpty && response.text == answer)
    }
}}
