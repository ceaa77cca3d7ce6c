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

    /// Makes a message.
    public init(_ role: Role, _ content: String, toolCalls: [ToolCall] = [], reasoning: String? = nil) {
        self.role = role
        self.content = content
        self.toolCalls = toolCalls
        self.reasoning = reasoning
    }

    /// A message with instructions.
    public static func system(_ content: String) -> ChatMessage { ChatMessage(.system, content) }
    /// A message of the person.
    public static func user(_ content: String) -> ChatMessage { ChatMessage(.user, content) }
    /// A message of the model.
    public static func assistant(_ content: String) -> ChatMessage { ChatMessage(.assistant, content) }
    /// The result of a tool.
    public static func tool(_ content: String) -> ChatMessage { ChatMessage(.tool, content) }
}

/// A tool that the model may call, for chat templates that know tools.
public struct ToolDefinition: Sendable, Hashable {
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
}

/// A call of a tool that the model asks for.
public struct ToolCall: Sendable, Hashable, Codable {
    /// The tool's name.
    public var name: String
    /// The arguments, a JSON object.
    public var arguments: String

    /// Makes a call, as for a stored conversation.
    public init(name: String, arguments: String) {
        self.name = name
        self.arguments = arguments
    }

    /// A whole call as the library tells it; nil for one that the answer ended within.
    init?(json: String) {
        struct Call: Decodable {
            var function: ToolCall
            var incomplete: Bool?
        }
        guard let call = try? JSONDecoder().decode(Call.self, from: Data(json.utf8)), call.incomplete != true else { return nil }
        self = call.function
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
        let json = try "[" + messages.map { try $0.json }.joined(separator: ",") + "]"
        let chat = try Handle(free: mc_chat_free) { out, error in
            json.withBytes { mc_chat_from_json($0, $1, out, error) }
        }
        if !tools.isEmpty {
            let json = try "[" + tools.map { try $0.json }.joined(separator: ",") + "]"
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
        get throws {
            let calls = try toolCalls.map { try "{\"type\":\"function\",\"function\":\($0.json)}" }.joined(separator: ",")
            let toolCalls = calls.isEmpty ? "" : ",\"tool_calls\":[\(calls)]"
            let thoughts = try reasoning.map { try ",\"reasoning_content\":\(quoted($0))" } ?? ""
            return try "{\"role\":\(quoted(role.rawValue)),\"content\":\(quoted(content))\(thoughts)\(toolCalls)}"
        }
    }
}

extension ToolCall {
    fileprivate var json: String {
        get throws { try "{\"name\":\(quoted(name)),\"arguments\":\(arguments)}" }
    }
}

extension ToolDefinition {
    fileprivate var json: String {
        get throws {
            let function = try "\"name\":\(quoted(name)),\"description\":\(quoted(description)),\"parameters\":\(parameters)"
            return "{\"type\":\"function\",\"function\":{\(function)}}"
        }
    }
}

private func quoted(_ text: String) throws -> String {
    String(decoding: try JSONEncoder().encode(text), as: UTF8.self)
}
