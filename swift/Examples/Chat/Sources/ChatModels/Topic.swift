import MetalCandle

/// What a conversation is about, in the model's own words. The schema binds these: an answer is nothing else.
public struct Topic: Decodable, Sendable, Hashable, SchemaProviding {
    public enum Kind: String, Decodable, Sendable, CaseIterable, SchemaProviding { case question, task, smallTalk }

    public let title: String
    public let kind: Kind

    public static var schema: JSONSchema { .object(["title": .string(matching: "^[^\\n]{1,40}$"), "kind": Kind.schema]) }
}
