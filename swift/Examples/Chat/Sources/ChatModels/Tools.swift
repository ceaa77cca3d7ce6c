import Foundation
import MetalCandle

extension CallableTool {
    /// What a model cannot know by itself: the time, in a zone that it names.
    public static let clock = CallableTool(
        name: "clock", description: "Tells the date and the time in a time zone, such as Europe/Rome"
    ) { (place: ClockArguments) in
        // The model reads what is wrong, and may call again.
        guard let zone = TimeZone(identifier: place.timeZone) else {
            return "error: expected the name of a time zone such as Europe/Rome, found \(place.timeZone)"
        }
        return Date.now.formatted(Date.ISO8601FormatStyle(timeZone: zone))
    }
}

private struct ClockArguments: Decodable, SchemaProviding {
    var timeZone: String

    static var schema: JSONSchema { .object(["timeZone": .string]) }
}
