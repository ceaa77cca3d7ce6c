// A conversation in the terminal: `swift run mc-chat [MODEL] [--system TEXT] [--max-tokens N] [--temperature X] [-p QUESTION]`
//
// MODEL is a directory, models/tiny-coder if left out. With -p one question is answered. Ctrl-C stops an answer, and the program where
// none is made; end of input (Ctrl-D) ends it.
import Dispatch
import Foundation
import MetalCandle
import Synchronization

struct Arguments {
    var model = "models/tiny-coder"
    var system: String?
    var question: String?
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
            default: return nil
            }
        }
    }
}

func say(_ text: String, to file: FileHandle = .standardOutput) {
    file.write(Data(text.utf8))
}

/// The answer in the making, which Ctrl-C cancels.
let answering = Mutex<Task<Void, any Error>?>(nil)

/// Prints an answer as it is made.
func answer(_ question: String, in session: ChatSession) async throws {
    let task = Task {
        for try await event in session.streamResponse(to: question) {
            if case .text(let piece) = event { say(piece) }
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

func converse(in session: ChatSession) async throws {
    let isTerminal = isatty(STDIN_FILENO) != 0
    while true {
        if isTerminal { say("> ") }
        guard let line = readLine() else { return }
        if !line.isEmpty { try await answer(line, in: session) }
    }
}

guard let arguments = Arguments(CommandLine.arguments.dropFirst()) else {
    say("usage: mc-chat [MODEL] [--system TEXT] [--max-tokens N] [--temperature X] [-p QUESTION]\n", to: .standardError)
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
    let session = ChatSession(model, instructions: arguments.system, options: arguments.options)
    if let question = arguments.question {
        try await answer(question, in: session)
    } else {
        try await converse(in: session)
    }
} catch {
    say("mc-chat: \((error as? MetalCandleError)?.details ?? "\(error)")\n", to: .standardError)
    exit(1)
}
