import CMetalCandle
import Foundation

/// One message of a conversation. Can be stored: it is `Codable`.
public struct ChatMessage: Sendable, Hashable, Codable {
    /// Who speaks: an open set, whatever the model's chat template knows.
    public struct Role: RawRepresentable, Sendable, Hashable, Codable {
        /// As the template spells it.
        public let rawValue: String

        /// Makes a role.
        public init(rawValue: String) { self.rawValue = rawValue }

        /// Instructions.
        public static let system = Role(rawValue: "system")
        /// The person.
        public static let user = Role(rawValue: "user")
        /// The model.
        public static let assistant = Role(rawValue: "assistant")
        /// The result of a tool that the model called.
        public static let tool = Role(rawValue: "tool")
    }

    /// Who speaks.
    public var role: Role
    /// What is said.
    public var content: String
    /// The tools that an assistant's message calls.
    public var toolCalls: [ToolCall]
    /// The thoughts behind an assistant's message, for templates that show them.
    public var reasoning: String?
    /// Of a tool's result: the ``ToolCall/id`` of the call, for templates that ask for it.
    public var toolCallID: String?
    /// Of a tool's result: the tool.
    public var toolName: String?

    /// Makes a message.
    public init(
        _ role: Role, _ content: String, toolCalls: [ToolCall] = [], reasoning: String? = nil, toolCallID: String? = nil,
        toolName: String? = nil
    ) {
        self.role = role
        self.content = content
        self.toolCalls = toolCalls
        self.reasoning = reasoning
        self.toolCallID = toolCallID
        self.toolName = toolName
    }

    /// A message with instructions.
    public static func system(_ content: String) -> ChatMessage { ChatMessage(.system, content) }
    /// A message of the person.
    public static func user(_ content: String) -> ChatMessage { ChatMessage(.user, content) }
    /// A message of the model.
    public static func assistant(_ content: String) -> ChatMessage { ChatMessage(.assistant, content) }
    /// The result of a tool, and the call that it is the result of.
    public static func tool(_ content: String, of call: ToolCall? = nil) -> ChatMessage {
        ChatMessage(.tool, content, toolCallID: call?.id, toolName: call?.name)
    }
}

/// A tool that the model may call, for chat templates that know tools.
public struct ToolDefinition: Sendable, Hashable, Codable {
    /// Its name.
    public var name: String
    /// What it does, for the model to read.
    public var description: String
    /// A JSON Schema of its arguments, an object.
    public var parameters: String

    /// Describes a tool.
    public init(name: String, description: String, parameters: String) {
        self.name = name
        self.description = description
        self.parameters = parameters
    }

    /// Describes a tool whose arguments are a type's.
    public init(name: String, description: String, parameters: (some SchemaProviding).Type) {
        self.init(name: name, description: description, parameters: parameters.schema.json)
    }
}

/// A tool with what runs when the model calls it, for ``ChatSession/respond(to:calling:maximumRounds:options:)``.
///
/// ```swift
/// struct Place: Decodable, SchemaProviding {
///     var city: String
///     static var schema: JSONSchema { .object(["city": .string]) }
/// }
/// let weather = CallableTool(name: "weather", description: "The weather of a city") { (place: Place) in
///     "It rains in \(place.city)."
/// }
/// print(try await session.respond(to: "Do I need an umbrella in Rome?", calling: [weather]).text)
/// ```
public struct CallableTool: Sendable {
    /// What the model is told of it.
    public let definition: ToolDefinition
    /// What it does: the result is for the model to read. An error ends the answer.
    public let run: @Sendable (ToolCall) async throws -> String

    /// A tool that is handed the call as the model wrote it.
    public init(_ definition: ToolDefinition, run: @escaping @Sendable (ToolCall) async throws -> String) {
        self.definition = definition
        self.run = run
    }

    /// A tool that is handed its arguments. Those that are not of the type are told to the model, which may correct them.
    public init<Arguments: Decodable & SchemaProviding>(
        name: String, description: String, run: @escaping @Sendable (Arguments) async throws -> String
    ) {
        self.init(ToolDefinition(name: name, description: description, parameters: Arguments.self)) { call in
            let arguments: Arguments
            do {
                arguments = try call.decodeArguments()
            } catch {
                return "error: expected arguments of the schema \(Arguments.schema.json), found \(call.arguments)"
            }
            return try await run(arguments)
        }
    }
}

extension CallableTool {
    /// Runs what an answer calls, one after another, for an answer with tools that is read piece by piece:
    ///
    /// ```swift
    /// let tools: [CallableTool] = []
    /// let asking = ChatSession(model, tools: tools.map(\.definition))
    /// var messages = [ChatMessage.user("Do I need an umbrella in Rome?")]
    /// while !messages.isEmpty {
    ///     var calls: [ToolCall] = []
    ///     for try await event in asking.streamResponse(to: messages) {
    ///         if case .text(let piece) = event { print(piece, terminator: "") }
    ///         if case .toolCall(let call) = event { calls.append(call) }
    ///     }
    ///     messages = try await CallableTool.results(of: calls, by: tools)
    /// }
    /// ```
    ///
    /// - Returns: a message for each call, to be answered. Of a tool that there is not, the message says which there are.
    /// - Throws: what a tool throws.
    public static func results(of calls: [ToolCall], by tools: [CallableTool]) async throws -> [ChatMessage] {
        var results: [ChatMessage] = []
        for call in calls {
            if let tool = tools.first(where: { $0.definition.name == call.name }) {
                results.append(.tool(try await tool.run(call), of: call))
            } else {
                let names = tools.map(\.definition.name).joined(separator: ", ")
                results.append(.tool("error: expected a call of one of \(names), found one of \(call.name)", of: call))
            }
        }
        return results
    }
}

/// A call of a tool that the model asks for.
public struct ToolCall: Sendable, Hashable, Codable {
    /// The tool's name.
    public var name: String
    /// The arguments, a JSON object.
    public var arguments: String
    /// What tells it apart from the others of its answer, for the message with its result.
    public var id: String?

    /// Makes a call, as for a stored conversation.
    public init(name: String, arguments: String, id: String? = nil) {
        self.name = name
        self.arguments = arguments
        self.id = id
    }

    /// A whole call as the library tells it; nil for one that the answer ended within.
    init?(json: String) {
        struct Call: Decodable {
            var id: String?
            var function: ToolCall
            var incomplete: Bool?
        }
        guard let call = try? JSONDecoder().decode(Call.self, from: Data(json.utf8)), call.incomplete != true else { return nil }
        self = call.function
        id = call.id
    }

    /// The arguments as a type of yours.
    public func decodeArguments<Arguments: Decodable>(as type: Arguments.Type = Arguments.self) throws -> Arguments {
        try JSONDecoder().decode(type, from: Data(arguments.utf8))
    }
}

/// The conversation as the chat template reads it.
struct ChatTemplateInput: Sendable {
    var messages: [ChatMessage]
    var tools: [ToolDefinition]
    /// Names and JSON values.
    var variables: [String: String]

    func native() throws -> Handle {
        let json = "[" + messages.map(\.json).joined(separator: ",") + "]"
        let chat = try Handle(free: mc_chat_free) { out, error in
            json.withBytes { mc_chat_from_json($0, $1, out, error) }
        }
        if !tools.isEmpty {
            let json = "[" + tools.map(\.json).joined(separator: ",") + "]"
            try call { error in json.withBytes { mc_chat_set_tools_json(chat.pointer, $0, $1, error) } }
        }
        for (name, value) in variables {
            try requireNoNUL(name, "templateVariables")
            try call { error in value.withBytes { mc_chat_set_variable_json(chat.pointer, name, $0, $1, error) } }
        }
        return chat
    }
}

// Written by hand: arguments and parameters are JSON already, and a template may show them in the order that they have.

extension ChatMessage {
    fileprivate var json: String {
        let calls = toolCalls.map(\.json).joined(separator: ",")
        let toolCalls = calls.isEmpty ? "" : ",\"tool_calls\":[\(calls)]"
        let thoughts = reasoning.map { ",\"reasoning_content\":\($0.quotedAsJSON)" } ?? ""
        let call = toolCallID.map { ",\"tool_call_id\":\($0.quotedAsJSON)" } ?? ""
        let tool = toolName.map { ",\"name\":\($0.quotedAsJSON)" } ?? ""
        return "{\"role\":\(role.rawValue.quotedAsJSON),\"content\":\(content.quotedAsJSON)\(thoughts)\(toolCalls)\(call)\(tool)}"
    }
}

extension ToolCall {
    fileprivate var json: String {
        let id = id.map { "\"id\":\($0.quotedAsJSON)," } ?? ""
        return "{\(id)\"type\":\"function\",\"function\":{\"name\":\(name.quotedAsJSON),\"arguments\":\(arguments)}}"
    }
}

extension ToolDefinition {
    fileprivate var json: String {
        let texts = "\"name\":\(name.quotedAsJSON),\"description\":\(description.quotedAsJSON)"
        return "{\"type\":\"function\",\"function\":{\(texts),\"parameters\":\(parameters)}}"
    }
}
