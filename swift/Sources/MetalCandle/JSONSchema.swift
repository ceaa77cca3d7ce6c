import Foundation

/// A JSON Schema, made of parts and not of text, for ``ChatSession/respond(to:as:options:)``.
///
/// ```swift
/// let schema = JSONSchema.object([
///     "isRust": .boolean, "confidence": .integer(0...10), "words": .array(of: .string, count: 0...3),
/// ])
/// print(schema.json)
/// ```
public struct JSONSchema: Sendable, Hashable {
    /// The schema as JSON. Properties stand in the order in which the answer will have them.
    public let json: String

    /// Takes a schema that is written already.
    public init(json: String) { self.json = json }

    /// Any text.
    public static let string = JSONSchema(json: #"{"type":"string"}"#)
    /// `true` or `false`.
    public static let boolean = JSONSchema(json: #"{"type":"boolean"}"#)
    /// A whole number that a `Double` holds, and so other readers of JSON as well.
    public static let integer = integer(-9_007_199_254_740_991...9_007_199_254_740_991)
    /// Any number.
    public static let number = JSONSchema(json: #"{"type":"number"}"#)
    /// Nothing.
    public static let null = JSONSchema(json: #"{"type":"null"}"#)

    /// A whole number of a range.
    public static func integer(_ range: ClosedRange<Int>) -> JSONSchema {
        JSONSchema(json: #"{"type":"integer","minimum":\#(range.lowerBound),"maximum":\#(range.upperBound)}"#)
    }

    /// A number of a range, whose ends are finite.
    public static func number(_ range: ClosedRange<Double>) -> JSONSchema {
        JSONSchema(json: #"{"type":"number","minimum":\#(range.lowerBound),"maximum":\#(range.upperBound)}"#)
    }

    /// One of some texts.
    public static func choice(_ texts: [String]) -> JSONSchema {
        JSONSchema(json: #"{"enum":[\#(texts.map(\.quotedAsJSON).joined(separator: ","))]}"#)
    }

    /// A text that a regular expression matches, as JSON Schema has them: anywhere in it, without `^` and `$`.
    public static func string(matching pattern: String) -> JSONSchema {
        JSONSchema(json: #"{"type":"string","pattern":\#(pattern.quotedAsJSON)}"#)
    }

    /// A list, of so many items.
    public static func array(of item: JSONSchema, count: ClosedRange<Int>? = nil) -> JSONSchema {
        let bounds = count.map { #","minItems":\#($0.lowerBound),"maxItems":\#($0.upperBound)"# } ?? ""
        return JSONSchema(json: #"{"type":"array","items":\#(item.json)\#(bounds)}"#)
    }

    /// What one of some schemas allows.
    public static func any(of schemas: [JSONSchema]) -> JSONSchema {
        JSONSchema(json: #"{"anyOf":[\#(schemas.map(\.json).joined(separator: ","))]}"#)
    }

    /// An object of these properties and no others, in this order.
    ///
    /// - Parameters:
    ///   - properties: their names, and what each may be.
    ///   - optional: the names of those that the model may leave out.
    public static func object(_ properties: KeyValuePairs<String, JSONSchema>, optional: Set<String> = []) -> JSONSchema {
        let members = properties.map { "\($0.key.quotedAsJSON):\($0.value.json)" }.joined(separator: ",")
        let required = properties.map(\.key).filter { !optional.contains($0) }.map(\.quotedAsJSON).joined(separator: ",")
        return JSONSchema(
            json: #"{"type":"object","properties":{\#(members)},"required":[\#(required)],"additionalProperties":false}"#)
    }
}

/// A type that says which JSON it is decoded from, so that an answer can be one.
///
/// ```swift
/// struct Verdict: Decodable, SchemaProviding {
///     var isRust: Bool
///     var confidence: Int
///
///     static var schema: JSONSchema { .object(["isRust": Bool.schema, "confidence": .integer(0...10)]) }
/// }
/// let verdict = try await session.respond(to: "Is `fn main() {}` Rust? Answer with JSON.", as: Verdict.self)
/// print(verdict.confidence)
/// ```
///
/// Texts, numbers, booleans, lists and optional values of such types have schemas, and enumerations with names as raw values.
public protocol SchemaProviding {
    /// The schema of its JSON.
    static var schema: JSONSchema { get }
}

extension String: SchemaProviding {
    /// Any text.
    public static var schema: JSONSchema { .string }
}

extension Bool: SchemaProviding {
    /// `true` or `false`.
    public static var schema: JSONSchema { .boolean }
}

extension Int: SchemaProviding {
    /// ``JSONSchema/integer``.
    public static var schema: JSONSchema { .integer }
}

extension Double: SchemaProviding {
    /// Any number.
    public static var schema: JSONSchema { .number }
}

extension Array: SchemaProviding where Element: SchemaProviding {
    /// A list of any length.
    public static var schema: JSONSchema { .array(of: Element.schema) }
}

extension Optional: SchemaProviding where Wrapped: SchemaProviding {
    /// The value or `null`.
    public static var schema: JSONSchema { .any(of: [Wrapped.schema, .null]) }
}

extension SchemaProviding where Self: CaseIterable & RawRepresentable, RawValue == String {
    /// One of the cases by its name.
    public static var schema: JSONSchema { .choice(allCases.map(\.rawValue)) }
}

extension String {
    /// The text as a string of JSON.
    var quotedAsJSON: String {
        var quoted = "\""
        for scalar in unicodeScalars {
            switch scalar {
            case "\"", "\\": quoted += "\\\(scalar)"
            case "\u{0}"..."\u{1F}":
                let digits = String(scalar.value, radix: 16)
                quoted += "\\u" + String(repeating: "0", count: 4 - digits.count) + digits
            default: quoted.unicodeScalars.append(scalar)
            }
        }
        return quoted + "\""
    }
}
