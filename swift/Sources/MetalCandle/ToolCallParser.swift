import Foundation

/// Finds calls of tools in streamed text: `<tool_call>{"name": …, "arguments": {…}}</tool_call>`, as Qwen, Hermes, SmolLM3 and others
/// write them. What is not such a call stays text.
struct ToolCallParser {
    private static let (open, close) = ("<tool_call>", "</tool_call>")

    /// Text whose meaning is open: the beginning of a mark, or a call without its end.
    private var held = ""
    private var isInside = false

    /// - Returns: what became certain with this piece.
    mutating func read(_ piece: String) -> [GenerationEvent] {
        held += piece
        var events: [GenerationEvent] = []
        while let mark = held.range(of: isInside ? Self.close : Self.open) {
            let before = String(held[..<mark.lowerBound])
            held = String(held[mark.upperBound...])
            if isInside {
                events.append(Self.call(before).map(GenerationEvent.toolCall) ?? .text(Self.open + before + Self.close))
            } else if !before.isEmpty {
                events.append(.text(before))
            }
            isInside.toggle()
        }
        if !isInside {
            let text = held.dropLast(Self.beginning(of: Self.open, endOf: held))
            held = String(held.dropFirst(text.count))
            if !text.isEmpty { events.append(.text(String(text))) }
        }
        return events
    }

    /// What is left when the answer ends.
    mutating func end() -> [GenerationEvent] {
        let rest = (isInside ? Self.open : "") + held
        self = ToolCallParser()
        return rest.isEmpty ? [] : [.text(rest)]
    }

    /// How many characters at the end of `text` may be the beginning of `mark`.
    private static func beginning(of mark: String, endOf text: String) -> Int {
        (1..<mark.count).last { text.hasSuffix(mark.prefix($0)) } ?? 0
    }

    private static func call(_ json: String) -> ToolCall? {
        guard let call = try? JSONSerialization.jsonObject(with: Data(json.utf8)) as? [String: Any],
            let name = call["name"] as? String,
            let arguments = call["arguments"] as? [String: Any],
            let data = try? JSONSerialization.data(withJSONObject: arguments, options: [.sortedKeys, .withoutEscapingSlashes])
        else { return nil }
        return ToolCall(name: name, arguments: String(decoding: data, as: UTF8.self))
    }
}
