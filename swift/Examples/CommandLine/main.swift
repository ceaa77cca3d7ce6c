// A conversation in the terminal: `swift run mc-chat [MODEL] [--system TEXT] [--max-tokens N] [--temperature X] [--tools auto|required]
// [--answer-format NAME] [-p QUESTION]`
//
// MODEL is a directory, models/tiny-coder if left out. With -p one question is answered. With --tools the model may, or has to, ask a
// clock, in the format that its chat template tells of, or NAME. Ctrl-C stops an answer, and the program where none is made; end of input
// (Ctrl-D) ends it.
import Dispatch
import Foundation
import MetalCandle
import Synchronization

let usage = """
    usage: mc-chat [MODEL] [--system TEXT] [--max-tokens N] [--temperature X] [--tools auto|required] [--answer-format NAME] [-p QUESTION]

    """

struct Arguments {
    var model = "models/tiny-coder"
    var system: String?
    var question: String?
    var tools: [CallableTool] = []
    var options = ResponseOptions()

    /// - Returns: nil for what is not understood.
    init?(_ arguments: some Sequence<String>) {
        var rest = arguments.makeIterator()
        while let argument = rest.next() {
            guard argument.hasPrefix("-") else {
                model = argument
                continue
            }
            guard let value = rest.next() else { return nil }
            switch argument {
            case "--system": system = value
            case "-p": question = value
            case "--max-tokens":
                guard let count = Int(value) else { return nil }
                options.maximumTokens = count
            case "--temperature":
                guard let temperature = Double(value) else { return nil }
                options.temperature = temperature
            case "--tools":
                guard ["auto", "required"].contains(value) else { return nil }
                tools = [clock]
                options.toolChoice = value == "auto" ? .auto : .required
            case "--answer-format": options.answerFormat = value
            default: return nil
            }
        }
    }
}

func say(_ text: String, to file: FileHandle = .standardOutput) {
    file.write(Data(text.utf8))
}

/// What a model cannot know by itself. The arguments are a type, from which the model is told a schema.
let clock = CallableTool(name: "clock", description: "Tells the date and the time, in UTC or where the user is") { (place: Place) in
    let zone: TimeZone = place.zone == .utc ? .gmt : .current
    return Date.now.formatted(Date.ISO8601FormatStyle(timeZone: zone))
}

struct Place: Decodable, SchemaProviding {
    enum Zone: String, CaseIterable, Decodable, SchemaProviding { case utc, local }
    var zone: Zone

    static var schema: JSONSchema { .object(["zone": Zone.schema]) }
}

/// The answer in the making, which Ctrl-C cancels.
let answering = Mutex<Task<Void, any Error>?>(nil)

/// Prints an answer as it is made. What the model calls runs, and the model goes on with the results.
func answer(_ question: String, in session: ChatSession, calling tools: [CallableTool]) async throws {
    let maximumRounds = 4
    let task = Task {
        var (messages, options) = ([ChatMessage.user(question)], session.options)
        for round in 1... {
            var calls: [ToolCall] = []
            for try await event in session.streamResponse(to: messages, options: options) {
                switch event {
                case .text(let piece): say(piece)
                case .toolCall(let call): calls.append(call)
                case .rejectedToolCall: say("[a call that is none, or has no end]\n", to: .standardError)
                case .reasoning, .finished: break
                }
            }
            if calls.isEmpty { return }
            messages = try await CallableTool.results(of: calls, by: tools)
            for (call, result) in zip(calls, messages) {
                say("[\(call.name) \(call.arguments): \(result.content)]\n", to: .standardError)
            }
            // What had to be called was called, and there is an end to it.
            options.toolChoice = round < maximumRounds ? nil : ResponseOptions.ToolChoice.none
        }
    }
    answering.withLock { $0 = task }
    defer { answering.withLock { $0 = nil } }
    do {
        try await task.value
        say("\n")
    } catch is CancellationError {
        say(" [stopped]\n")
    }
}

func converse(in session: ChatSession, calling tools: [CallableTool]) async throws {
    let isTerminal = isatty(STDIN_FILENO) != 0
    while true {
        if isTerminal { say("> ") }
        guard let line = readLine() else { return }
        if !line.isEmpty { try await answer(line, in: session, calling: tools) }
    }
}

guard let arguments = Arguments(CommandLine.arguments.dropFirst()) else {
    say(usage, to: .standardError)
    exit(2)
}

signal(SIGINT, SIG_IGN)
let interruptions = DispatchSource.makeSignalSource(signal: SIGINT, queue: .global())
interruptions.setEventHandler { @Sendable in
    guard let task = answering.withLock({ $0 }) else { exit(130) }
    task.cancel()
}
interruptions.activate()

do {
    let model = try await LanguageModel.load(from: URL(filePath: arguments.model))
    let tools = arguments.tools
    let session = ChatSession(
        model, instructions: arguments.system, tools: tools.map(\.definition), options: arguments.options)
    if let question = arguments.question {
        try await answer(question, in: session, calling: tools)
    } else {
        try await converse(in: session, calling: tools)
    }
} catch {
    say("mc-chat: \((error as? MetalCandleError)?.details ?? "\(error)")\n", to: .standardError)
    exit(1)
}
